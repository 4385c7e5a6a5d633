"""The flags of a training run, which `segtx train` and `segtx plan` share: recipes first, then the command line."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from ..training.arguments import Arguments, check_arguments
from ..training.recipes import SCENES_MODEL, SCENES_RECIPE, find_recipe, read_recipe
from .flags import FlagParser, as_flags


NAMES = tuple(option.name for option in fields(Arguments))
EXPLICIT = {"max_train_steps", "num_train_epochs", "resume_from_checkpoint"}  # of a run that decides nothing itself


def given_names(command_line: list[str]) -> set[str]:
    """The arguments that the words of a command line set, apart from those in recipes."""
    flags = {word[2:].split("=")[0].replace("-", "_") for word in command_line if word.startswith("--")}
    return {name for name in NAMES if name in flags or f"no_{name}" in flags}


def recipes_of(command_line: list[str]) -> list[Path]:
    """The files of its recipes."""
    parser = FlagParser("train", "")
    parser.add_argument("--recipe", action="append", default=[])
    return [find_recipe(name) for name in parser.parse_known_args(command_line)[0].recipe]


_OF_A_TEXT = (ValueError.__init__, OSError.__init__)  # some of their subclasses take more than a text


@contextmanager
def named_flags(*dataclasses: type) -> Iterator[None]:
    """What the library says inside of `Arguments`, and of other settings, becomes what users hear of flags."""
    names = {option.name for dataclass in (Arguments, *dataclasses) for option in fields(dataclass)}
    try:
        yield
    except (ValueError, OSError) as error:
        kind = next(kind for kind in type(error).__mro__ if kind.__init__ in _OF_A_TEXT)
        raise kind(as_flags(str(error), names)) from error


def parse_training(command_line: list[str], command: str = "train", description: str = "") -> Arguments:
    """Arguments from `--recipe` files, then from the command line itself, which overrides them.

    Raises:
        ValueError: if there is no such recipe, a flag is not known, or `check_arguments` finds something.
    """
    parser = FlagParser(command, description, usage=f"segtx {command} [--recipe NAME] [--flag value ...]")
    parser.add_argument(
        "--recipe", action="append", default=[], help="Name of a recipe that comes along (`segtx recipes`), or a file."
    )
    parser.add_dataclass(Arguments)
    said = parser.parse_args(command_line)
    words = [word for name in said.recipe for word in read_recipe(name)]
    if not (said.recipe or said.train_dir or said.dataset_name or said.model_name_or_path):
        is_other = said.architecture not in (None, "segformer") or said.backbone or said.config_name
        words = shlex.split(SCENES_RECIPE + ("" if is_other else SCENES_MODEL))
    if any(word.split("=")[0] == "--recipe" for word in words):
        raise ValueError(f"{said.recipe[0]}: a recipe cannot name another; give both on the command line")
    arguments = parser.values_of(Arguments, parser.parse_args([*words, *command_line]))
    if arguments.automatic is None:
        is_told = said.recipe or given_names(command_line) & EXPLICIT
        has_data = said.train_dir or said.dataset_name
        arguments.automatic = bool(arguments.time_budget or (has_data and not is_told))
    with named_flags():
        check_arguments(arguments)
    return arguments
