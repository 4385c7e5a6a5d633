"""Text of users in Markdown: names of classes, folders and data sets are shown as they are, whatever is in them."""

import re


CONTROLS = "[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"  # also those that turn the direction of writing


def plain(text: str) -> str:
    """A text that is neither mark, link, tag nor another cell of a table: one line, marks behind backslashes.

    Example:
        >>> plain("car|*van*")
        'car\\\\|\\\\*van\\\\*'
    """
    line = " ".join(re.sub(CONTROLS, " ", str(text)).split())
    return re.sub(r"([\\`*_\[\]<>&|~#$@]|(?<=www)\.|:(?=//))", r"\\\1", line)


def code_block(text: str) -> str:
    """A text as a block of code that nothing in it can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text.rstrip()}\n{fence}"
