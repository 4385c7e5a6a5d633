"""Settings as fields of dataclasses: each with a help text and, if it is a number, the range that it must lie in.

    @dataclass
    class Averaging:
        decay: float = setting(0.999, "Of the average, a step.", "[0, 1)")

    check_settings(Averaging(decay=2))  # ValueError: decay is 2; it must lie in [0, 1)

The commands make their flags of such fields (`hf_segtx.cli.flags`). Needs nothing but Python itself, so that a command
can answer before anything else is imported.
"""

import math
import os
import re
from dataclasses import MISSING, field, fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints


def setting(default, help: str, range: str | None = None, count: str | None = None):
    """A field of a dataclass.

    Args:
        default: of the field; a list is copied for each instance.
        help: one sentence for the command line.
        range: of a number, or of each number of a list, in the notation of intervals, such as "[0, 1)" or "(0, inf)".
            None (unset) is always allowed, nan and infinity never.
        count: of the values of a list, such as "2" or "1-2"; an empty list is unset, allowed if it is the default.
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
    """Checks the type of every field of a dataclass, and its range and count if it has one.

    Raises:
        ValueError: naming the first field that is wrong, its value and what it may be.
    """
    hints = get_type_hints(type(settings))
    for option in fields(settings):
        value, kind = getattr(settings, option.name), hints[option.name]
        if get_origin(kind) in (Union, UnionType):
            if value is None:
                continue
            (kind,) = (part for part in get_args(kind) if part is not NoneType)
        values, what = [value], option.name
        if get_origin(kind) is list:
            if not isinstance(value, (list, tuple)):
                raise ValueError(f"{what} is {value!r}; it must be a list")
            values, (kind,) = value, get_args(kind)
            if not value and option.default_factory is not MISSING and option.default_factory():
                raise ValueError(f"{what} is empty; give {option.metadata['count'] or 'at least 1'}")
            _check_count(what, value, option.metadata.get("count"))
        for number in values:
            _check_kind(what, number, kind)
            if (range := option.metadata.get("range")) and not is_within(number, range):
                raise ValueError(f"{what} is {number}; it must {in_words(range)}")


def _check_count(name: str, values: list, count: str | None) -> None:
    least, _, most = (count or "0-inf").partition("-")
    if values and not float(least) <= len(values) <= float(most or least):
        raise ValueError(f"{name} has {len(values)} values, {values}; give {count.replace('-', ' or ')}")


def _check_kind(name: str, value, kind) -> None:
    """Raises ValueError if one value is not of a type; numpy's numbers are numbers, paths are texts."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            *others, last = map(repr, get_args(kind))
            raise ValueError(f"{name} is {value!r}; it must be {', '.join(others)} or {last}")
        return
    kinds, what = {
        bool: (bool, "True or False"),
        int: (Integral, "a whole number"),
        float: (Real, "a number"),
        str: ((str, os.PathLike), "a text"),
    }[kind]
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} is {value!r}; it must be {what}")
    if value == "":
        raise ValueError(f"{name} is empty; omit it, or give a text (maybe a variable of the shell is not set)")
