"""Trains the rows of a table of the papers under one budget, and writes the table with ours beside it.

    segtx ablate                                        # the tables that come along
    segtx ablate segformer_1b --dry_run                 # its runs: commands, parameters, multiply-adds
    segtx ablate segformer_1b --train_dir ADEChallengeData2016
    segtx ablate segformer_1b --train_dir data/train --validation_dir data/val --max_train_steps 20000 --seeds 0 1 2
    segtx ablate segmenter_3 --train_dir data --time_budget 1h --rows 'Seg-S/16, linear' 'Seg-S/32, linear'
    accelerate launch -m hf_segtx ablate setr_2 --train_dir data/train --validation_dir data/val

Every flag of `segtx train` holds for all rows and wins over the table's; fields of --config_overrides are put together,
and a --size or --architecture takes the place of a recipe's --model_name_or_path. Without data of your own the rows
learn the embedded scenes.

What comes out, in `--output_dir` (outputs/ablations/TABLE):

    ablation.md ablation.json     published numbers, and ours: parameters, multiply-adds, scores over the seeds
    ROW/seed_N/                   each run, as `segtx train` leaves it

The same command goes on where it was interrupted: finished runs are left alone, others resumed at their last
checkpoint. Flags that would mix runs of different settings in one table are refused. The processes of a launcher train
and evaluate each row together.

A table of your own is a YAML file like those of `examples/ablations`; give its path.
"""

import argparse
import gc
import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

from ..settings import setting
from ..training.ablation import (
    Ablation,
    ablation_names,
    count,
    evaluation_folder,
    known_rows,
    read_ablation,
    run_folder,
    write_table,
)
from ..training.arguments import FREE_ARGUMENTS, Arguments, config_overrides
from ..training.recipes import read_recipe
from .flags import FlagParser, check_output_dir
from .training_flags import NAMES, given_names, named_flags, parse_training


@dataclass
class AblationSettings:
    """Table; all other flags are those of `segtx train`."""

    rows: list[str] = setting([], "Names of the rows to train; else all.")
    seeds: list[int] = setting([0], "Each row is trained with each of these.", "[0, 2147483647]")
    random_weights: bool = setting(False, "Start all rows from random weights, whatever the table says.")
    output_dir: str | None = setting(None, "Where everything goes; else outputs/ablations and the name of the table.")
    dry_run: bool = setting(False, "Print the runs, their parameters and multiply-adds, and train nothing.")


# Each run has its own.
NOT_SHARED = {"seed", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "dry_run", "hub_model_id"}
SHARED = {*NAMES} - NOT_SHARED
# What runs of one table may have otherwise: not the data, and not the budget.
FREE = {*FREE_ARGUMENTS, *NOT_SHARED} - {"train_dir", "validation_dir", "num_train_epochs", "time_budget"}
LENGTHS = {"max_train_steps", "num_train_epochs"}


def flag_parser(description: str = "") -> FlagParser:
    """A parser of the flags of `segtx train` that rows share."""
    parser = FlagParser("ablate", description, usage="segtx ablate [TABLE] [--rows NAME ...] [--flag value ...]")
    parser.add_argument("--recipe", action="append", default=[], help="Name of a recipe, or a file; for all rows.")
    parser.add_dataclass(Arguments, SHARED)
    return parser


def values_given(said: argparse.Namespace, words: list[str]) -> dict:
    """The arguments that the words set, those in recipes among them."""
    values: dict = {}
    for name in said.recipe:
        recipe = read_recipe(name)
        values = combined(values, values_given(flag_parser().parse_args(recipe), recipe))
    given = given_names(words) & SHARED
    return combined(values, {name: getattr(said, name) for name in NAMES if name in given})


def combined(values: dict, later: dict) -> dict:
    """Both, of which the later wins; fields of the configuration are put together."""
    both = {**values, **later}
    if "config_overrides" in values and "config_overrides" in later:
        texts = (values["config_overrides"], later["config_overrides"])
        first, second = (config_overrides(Arguments(config_overrides=text)) for text in texts)
        both["config_overrides"] = json.dumps(first | second)
    if later.keys() & {"size", "architecture", "config_name"}:
        if "model_name_or_path" not in later:
            both.pop("model_name_or_path", None)
    return both


def words_of(values: dict) -> list[str]:
    """Flags and values as on a command line."""
    words = []
    for name, value in values.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def values_of(ablation: Ablation, name: str, given: dict, random_weights: bool) -> dict:
    """The arguments of a row.

    Raises:
        ValueError: for flags of the table that there are not, and for a share of steps whose number is not known.
    """
    row, values = ablation.rows[name], {}
    for flags in (ablation.flags, row.flags):
        words = shlex.split(flags)
        values = combined(values, values_given(flag_parser().parse_args(words), words))
    values = combined(values, given)
    if random_weights or row.random_weights:
        values = {key: value for key, value in values.items() if key not in ("backbone_weights", "model_name_or_path")}
    if "time_budget" in given:
        values = {key: value for key, value in values.items() if key not in LENGTHS - given.keys()}
    if row.warmup_share is not None and "num_warmup_steps" not in given:
        if "max_train_steps" not in values:
            raise ValueError(
                f"the warm-up of {name!r} is a share of the steps, whose number a time budget leaves open; give "
                "--max_train_steps, or --num_warmup_steps"
            )
        values["num_warmup_steps"] = round(row.warmup_share * values["max_train_steps"])
    return values


def settled(values: dict) -> dict:
    """All arguments that decide what comes out of a run, as `segtx train` takes them.

    Raises:
        ValueError: if there is something wrong with them.
    """
    arguments = vars(parse_training(words_of(values), "ablate"))
    return {name: value for name, value in arguments.items() if name not in FREE}


def check_one_table(folder: Path, arguments: dict[str, dict]) -> None:
    """Raises ValueError if rows were trained there with other arguments, or two rows have the same."""
    for first, second in combinations(arguments, 2):
        if arguments[first] == arguments[second]:
            raise ValueError(
                f"with these flags the rows {first!r} and {second!r} are the same; omit what makes them so, or choose "
                "others with --rows"
            )
    for name, there in known_rows(folder).items():
        before, now = there.get("arguments"), arguments.get(name)
        if before and now and (changed := [key for key in now if now[key] != before.get(key)]):
            raise ValueError(
                f"--output_dir {folder}: the row {name!r} has --{changed[0]} {before.get(changed[0])} there, "
                f"{now[changed[0]]} here; choose another"
            )


def train(folder: Path, values: dict, seed: int) -> int:
    """Trains a row, or goes on with it; returns the exit status."""
    from accelerate.state import AcceleratorState, PartialState

    from . import train as command

    gc.collect()  # models of earlier rows
    AcceleratorState._reset_state()  # one precision a process, it says otherwise
    words = words_of({**values, "seed": seed, "output_dir": folder})
    if (folder / "train.args").is_file():
        words = ["--recipe", str(folder / "train.args"), "--resume_from_checkpoint", "latest"]
    status = command.run(words)
    if status == 0:
        PartialState().wait_for_everyone()  # until the main process has written the results
    return status


def evaluate(folder: Path, ablation: Ablation) -> None:
    """Evaluates a trained row in the ways of the table."""
    from . import evaluate as command

    results = json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    for column, flags in ablation.evaluations.items():
        place = evaluation_folder(folder, column)
        if not (place / "evaluation.json").is_file():
            words = [*command.words_of_card(results), *shlex.split(flags), "--output_dir", str(place)]
            command.run([str(folder), *words])


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def show_tables() -> int:
    """Prints the list; returns the exit status."""
    tables = [read_ablation(name) for name in ablation_names()]
    width = max(len(table.name) for table in tables)
    for table in tables:
        print(f"{table.name:<{width}}  {len(table.own_rows):2} runs  {table.title}")
    return 0


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    parser = flag_parser(__doc__)
    parser.add_argument("table", nargs="?", help="Name of a table, or a YAML file; none: their list.")
    parser.add_argument(
        "--evaluation",
        action="append",
        metavar="FLAGS",
        help="Flags of `segtx evaluate`, in place of those of the table's first evaluation; again for the next.",
    )
    parser.add_dataclass(AblationSettings)
    said = parser.parse_args(command_line)
    settings = parser.values_of(AblationSettings, said)
    if said.table is None:
        return show_tables()
    ablation = read_ablation(said.table)
    rows = settings.rows or ablation.own_rows
    if wrong := [row for row in rows if row not in ablation.own_rows]:
        raise ValueError(f"--rows {wrong[0]!r} is not in {ablation.name}; its rows are {', '.join(ablation.own_rows)}")
    if said.evaluation:
        if len(said.evaluation) != len(ablation.evaluations):
            raise ValueError(
                f"--evaluation is given {len(said.evaluation)} times; {ablation.name} has {len(ablation.evaluations)}"
            )
        ablation.evaluations = dict(zip(ablation.evaluations, said.evaluation))
    folder = Path(settings.output_dir or f"outputs/ablations/{ablation.name}")
    check_output_dir(str(folder))
    with named_flags(AblationSettings):
        given = values_given(said, command_line)
        runs = {row: values_of(ablation, row, given, settings.random_weights) for row in rows}
        evaluation = list(ablation.evaluations.values())
        arguments = {row: {**settled(values), "evaluation": evaluation} for row, values in runs.items()}
        check_one_table(folder, arguments)
        known = {}
        for row, values in runs.items():
            side = ablation.rows[row].image_size or ablation.image_size
            cost = count(parse_training(words_of(values), "ablate"), ablation.num_labels, tuple(side))
            known[row] = {**cost, "arguments": arguments[row]}
            if settings.dry_run and is_main():
                print(f"{row}: {', '.join(f'{number:.2f} {unit}' for unit, number in cost.items())}")
                print(f"  segtx train {shlex.join(words_of(values))}\n", flush=True)
        if settings.dry_run:
            return 0
        shown = words_of({name: value for name, value in given.items() if not name.endswith("token")})
        flags = shlex.join(["--random_weights"] * settings.random_weights + shown)
        if not given.keys() & {"train_dir", "dataset_name"}:
            flags = f"{flags}  # on the embedded scenes".strip()
        return run_all(folder, ablation, runs, settings.seeds, partial(write_table, folder, ablation, known, flags))


def run_all(folder: Path, ablation: Ablation, runs: dict[str, dict], seeds: list[int], write: Callable) -> int:
    """Trains and evaluates what is not finished, and writes the table after each run; returns the exit status."""
    text = write() if is_main() else ""
    for seed in seeds:
        for row, values in runs.items():
            place = run_folder(folder, row, seed)
            if not (place / "all_results.json").is_file():
                if is_main():
                    print(f"\n{ablation.name}: {row}, seed {seed}", flush=True)
                if status := train(place, values, seed):
                    return status
            evaluate(place, ablation)
            if is_main():
                text = write()
    if is_main():
        print(f"\n{text}\n{folder / 'ablation.md'}")
    return 0
