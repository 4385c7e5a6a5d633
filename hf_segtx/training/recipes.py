"""Recipes: files of flags, quoted as in a shell, with # comments. Each run leaves one, `train.args`.

    find_recipe("segformer_b0_ade20k_512")   # one that comes with the package, by its name; or the path of a file
    as_recipe(arguments)                     # the text of one

Needs nothing but Python itself.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path

from ..resources import resource_folder
from .arguments import Arguments


# What a run does that is told neither data nor model: a small SegFormer learns the embedded scenes in minutes.
SCENES_RECIPE = """
--max_train_samples 8800 --crop_size 128 --scale_range 0.9 1.2
--max_train_steps 1100 --evaluation_steps 275 --num_warmup_steps 50 --max_grad_norm 1
"""
SCENES_MODEL = """
--size b0 --config_overrides '{"drop_path_rate": 0.0}' --learning_rate 2e-3
"""  # unless it is told another model

_NOT_WRITTEN = (
    "token", "hub_token", "overwrite_output_dir", "resume_from_checkpoint", "automatic", "time_budget", "dry_run"
)  # fmt: skip


def recipe_names() -> list[str]:
    """Those that come with the package."""
    return sorted(file.stem for file in resource_folder("recipes").glob("*.args"))


def describe(name: str) -> tuple[str, str]:
    """The data set of a recipe, and its mean IoU with the protocol, as its head says."""
    lines = find_recipe(name).read_text(encoding="utf-8").splitlines()
    head = " ".join(line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines))
    title, _, rest = head.partition(". ")
    data = title.rpartition(" on ")[2].partition(", for ")[0].partition(";")[0]
    found = re.search(r"(Published )?mIoU(?: \((.+?)\))?: ([\d.]+) %", rest)
    if found is None:
        return data, "none published for validation"
    published, protocol, score = found.groups()
    return data, f"{score} % ({protocol})" if published else f"{score} % (measured here)"


def find_recipe(name: str) -> Path:
    """The recipe of this name that comes with the package, or the file of this path.

    Raises:
        ValueError: if there is neither.
    """
    named = resource_folder("recipes") / f"{name.removesuffix('.args')}.args"
    for file in (Path(name), named):
        if file.is_file():
            return file
    close = get_close_matches(named.stem, recipe_names(), n=1)
    cure = f"did you mean {close[0]}?" if close else "`segtx recipes` lists those that come with the package"
    what = "no such file" if len(Path(name).parts) > 1 else "no file and no name"
    raise ValueError(f"there is no recipe {name}, {what}; {cure}")


def read_recipe(name: str) -> list[str]:
    """The flags and values of a recipe.

    Raises:
        ValueError: if there is none, or its quotes do not match.
    """
    file = find_recipe(name)
    try:
        return shlex.split(file.read_bytes().decode(errors="surrogateescape"), comments=True)
    except ValueError as error:
        raise ValueError(f"{file} is no recipe, a text of flags and values ({error})") from error


def write_recipe(file: Path, arguments: Arguments, reasons: Mapping[str, str] | None = None) -> None:
    """Writes the text of `as_recipe`, so that any name of a file comes back as it was."""
    file.write_bytes(as_recipe(arguments, reasons).encode(errors="surrogateescape"))


def as_recipe(arguments: Arguments, reasons: Mapping[str, str] | None = None) -> str:
    """The arguments that differ from their defaults, a flag a line. No tokens.

    Args:
        reasons: name -> why it is so; a line of comment above its flag, which is written even if it is the default.
    """
    lines, reasons = [], reasons or {}
    for option in fields(arguments):
        value = getattr(arguments, option.name)
        default = option.default_factory() if option.default is MISSING else option.default
        if option.name in reasons:
            lines.append(f"# {option.name}: {reasons[option.name]}")
        elif value == default:
            continue
        if value is None or value == [] or option.name in _NOT_WRITTEN:
            continue
        values = value if isinstance(value, list) else [value]
        lines.append(shlex.join([f"--{option.name}", *map(str, values)]))
    return "\n".join(lines) + "\n"
