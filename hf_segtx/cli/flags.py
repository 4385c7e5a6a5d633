"""Dataclasses -> flags of the command line, and what the library says about parameters -> what users hear about flags.

    parser = FlagParser("evaluate", description=__doc__)
    parser.add_dataclass(DataSettings)
    parser.add_argument("--json", help="file for all scores")   # as ever with argparse
    arguments = parser.parse_args(words)
    settings = parser.values_of(DataSettings, arguments)        # an instance, with its ranges checked

What is wrong is a ValueError of one line, not a page of usage and an exit.
"""

import argparse
import inspect
import re
import shlex
from collections.abc import Collection
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

from ..settings import check_settings


TRUTH = {**dict.fromkeys("true t yes y 1".split(), True), **dict.fromkeys("false f no n 0".split(), False)}


class FlagParser(argparse.ArgumentParser):
    """`argparse` for a command of `segtx`: flags of dataclasses, no abbreviations, `--learning-rate` for `_` as well.

    Args:
        command: the word after `segtx`.
        description: for --help, shown as it is.
    """

    def __init__(self, command: str, description: str, **settings):
        super().__init__(
            prog=f"segtx {command}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **settings,
        )

    def add_dataclass(self, dataclass: type, names: Collection[str] | None = None) -> None:
        """A flag for each field, those of each class among the bases in a group under its docstring.

        Args:
            names: of the fields to take; default: all.
        """
        hints = get_type_hints(dataclass)
        known = {option.name for option in fields(dataclass)}
        left = {option.name: option for option in fields(dataclass) if names is None or option.name in names}
        for base in dataclass.__mro__[:-1]:
            if own := [left.pop(name) for name in inspect.get_annotations(base) if name in left]:
                group = self.add_argument_group(base.__doc__.splitlines()[0].rstrip("."))
                for option in own:
                    _add_flag(group, option, hints[option.name], as_flags(option.metadata["help"], known))

    def values_of(self, dataclass: type, arguments: argparse.Namespace):
        """An instance of the dataclass with the values of its flags; fields without a flag have their defaults.

        Raises:
            ValueError: for a number out of its range, naming the flag.
        """
        names = {option.name for option in fields(dataclass)}
        try:
            values = dataclass(**{name: value for name, value in vars(arguments).items() if name in names})
            check_settings(values)
        except ValueError as error:
            raise ValueError(as_flags(str(error), names)) from error
        return values

    def parse_known_args(self, args=None, namespace=None):  # `parse_args` goes through it
        return super().parse_known_args(None if args is None else self._as_written_here(args), namespace)

    def _as_written_here(self, words: list[str]) -> list[str]:
        """Flags with _ for -; a switch that no truth value follows gets one, as it would take the model for one."""
        words = [_underscored(word) for word in words]
        switches = {name for name, action in self._option_string_actions.items() if action.type is _truth}
        following = [*words[1:], ""]
        return [
            f"{word}=True" if word in switches and next_word.lower() not in TRUTH else word
            for word, next_word in zip(words, following)
        ]

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        """As argparse's.

        Raises:
            ValueError: for what cannot be parsed; for an unknown flag with the one that is written most like it.
        """
        names = [_underscored(word).partition("=")[0] for word in args or ()]
        unknown = [name for name in names if re.match("--[a-z]", name) and name not in self._option_string_actions]
        if not unknown:  # that is said before a missing model
            arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            close = get_close_matches(unknown[0].split("=")[0], list(self._option_string_actions), n=1)
            cure = f"did you mean {close[0]}?" if close else f"`{self.prog} --help` lists the flags"
            raise ValueError(
                f"{shlex.join(unknown)}: not a flag of `{self.prog}`, or not a value of the flag before it; {cure}"
            )
        return arguments

    def error(self, message: str):
        raise ValueError(f"{message}; `{self.prog} --help` says more")


def as_flags(message: str, names: Collection[str]) -> str:
    """The text with the parameters among `names` written as flags: "seed is -1" becomes "--seed is -1".

    Names that are also plain words count at the start of the text and in backticks only.
    """
    message = re.sub(r"`(\w+)`", lambda match: f"--{match[1]}" if match[1] in names else match[0], message)
    if (first := re.match(r"\w+(?=[ :,;]|$)", message)) and first[0] in names:
        message = f"--{message}"
    joined = "|".join(sorted((name for name in names if "_" in name), key=len, reverse=True))
    return re.sub(rf"(?<![\w./\\'\"-])({joined})(?!\.?[\w/\\'\"])", r"--\1", message) if joined else message


def check_output_dir(path: str | None) -> None:
    """Raises ValueError if there is a file where that folder, or one above it, would be."""
    folder = Path(path or ".").absolute()
    place = next(place for place in (folder, *folder.parents) if place.exists())
    if not place.is_dir():
        raise ValueError(f"--output_dir {path}: {place} is not a folder; choose another")


def _underscored(word: str) -> str:
    """--learning-rate=1e-4 -> --learning_rate=1e-4."""
    name, equals, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if re.match("--[a-z]", word) else word


def _add_flag(group, option: Field, kind, help: str) -> None:
    """The flag of a field of this type: bool, int, float, str, a Literal, one of these or None, or a list of one."""
    default = option.default if option.default_factory is MISSING else option.default_factory()
    if not (default is None or isinstance(default, bool) or default in ("", [])):
        help += f" Default: {' '.join(map(str, default)) if isinstance(default, list) else default}."
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (part for part in get_args(kind) if part is not NoneType)
    flag, settings = f"--{option.name}", {"default": default, "help": help.replace("%", "%%")}
    if kind is bool:
        group.add_argument(flag, nargs="?", const=True, type=_truth, metavar="True|False", **settings)
        if default:
            group.add_argument(f"--no_{option.name}", action="store_false", dest=option.name, help=argparse.SUPPRESS)
    elif get_origin(kind) is Literal:
        group.add_argument(flag, choices=get_args(kind), **settings)
    elif get_origin(kind) is list:
        group.add_argument(flag, nargs="+", type=get_args(kind)[0], metavar="X", **settings)
    else:
        group.add_argument(flag, type=kind, metavar=kind.__name__.upper(), **settings)


def _truth(word: str) -> bool:
    """Of a word after a switch."""
    if word.lower() not in TRUTH:
        raise argparse.ArgumentTypeError(f"{word!r} is neither True nor False")
    return TRUTH[word.lower()]
