"""Settings as fields of dataclasses: each with a help text and, if it is a number, the range that it must lie in.

    @dataclass
    class Averaging:
        decay: float = setting(0.999, "Of the average, a step.", "[0, 1)")

    check_settings(Averaging(decay=2))  # ValueError: decay is 2; it must lie in [0, 1)

The commands make their flags of such fields (`hf_segtx.cli.flags`). Needs nothing but Python itself, so that a command
can answer before anything else is imported.
"""

import math
import re
from dataclasses import field, fields


def setting(default, help: str, range: str | None = None, count: str | None = None):
    """A field of a dataclass.

    Args:
        default: of the field; a list is copied for each instance.
        help: one sentence for the command line.
        range: of a number, or of each number of a list, in the notation of intervals, such as "[0, 1)" or "(0, inf)".
            None (unset) is always allowed, nan and infinity never.
        count: of the values of a list, such as "2" or "1-2"; an empty list is unset and always allowed.
    """
    metadata = {"help": help, "range": range, "count": count}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def is_within(value: float, range: str) -> bool:
    """Whether a finite number lies in an interval such as "[0, 1)"."""
    opening, low, high, closing = re.fullmatch(r"([\[(])(\S+), (\S+)([\])])", range).groups()
    above = value >= float(low) if opening == "[" else value > float(low)
    below = value <= float(high) if closing == "]" else value < float(high)
    return math.isfinite(value) and above and below


def in_words(range: str) -> str:
    """[1, inf) -> be at least 1; other intervals as they are written."""
    low = range[1:].partition(",")[0]
    return f"be {'at least' if range[0] == '[' else 'above'} {low}" if range.endswith(" inf)") else f"lie in {range}"


def check_settings(settings) -> None:
    """Checks every field of a dataclass that has a range or a count.

    Raises:
        ValueError: naming the first field that is outside, its value and what it may be.
    """
    for option in fields(settings):
        value = getattr(settings, option.name)
        if value is None or value == []:
            continue
        values = value if isinstance(value, list) else [value]
        if count := option.metadata.get("count"):
            least, _, most = count.partition("-")
            if not int(least) <= len(values) <= int(most or least):
                raise ValueError(f"{option.name} has {len(values)} values, {values}; give {count.replace('-', ' or ')}")
        if range := option.metadata.get("range"):
            for number in values:
                if not is_within(number, range):
                    raise ValueError(f"{option.name} is {number}; it must {in_words(range)}")
