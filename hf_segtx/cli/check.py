"""Tells what is wrong with a data set, and how to cure it, before a model is trained on it.

    python examples/check_dataset.py --train_dir data/train --validation_dir data/val
    python examples/check_dataset.py --train_dir data/cityscapes --picture overlays.png --json numbers.json
    python examples/check_dataset.py --dataset_name USER/ade20k --max_samples 2000

Reads every file once, in processes, and prints the histogram of raw values and classes with the images of each, mean
and std of the images, and a verdict: values outside the classes; masks of {0, 255}, in RGB, with smoothed edges or
ids shifted by one; masks of other sizes than their images, or that lie beside what they show; files that cannot be
read; classes that a split lacks; images that are in both splits. Exit status 0: ready (maybe with warnings), 1: errors.
"""

import argparse
import json
from pathlib import Path

from ..data import load_data
from ..data.diagnosis import as_json, diagnose, examine, overlays, tables
from ..training.arguments import add_data_flags


def parse_arguments(command_line: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="check_dataset.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--train_dir", help="folder with images/, masks/ and classes.json, a public data set, or pairs")
    parser.add_argument("--validation_dir", help="such a folder, for validation")
    parser.add_argument("--dataset_name", help="data set on the Hub, or a folder that `datasets` can load")
    parser.add_argument("--train_split", default="train", help="split to train on")
    parser.add_argument("--validation_split", help="split to validate on; default: validation, val or valid")
    parser.add_argument("--max_samples", type=int, help="read only so many of each split, evenly spread")
    parser.add_argument("--picture", default="check_dataset.png", help="file for sixteen images under their masks")
    parser.add_argument("--json", help="file for all numbers")
    add_data_flags(parser)
    arguments = parser.parse_args(command_line)
    if not (arguments.train_dir or arguments.validation_dir or arguments.dataset_name):
        parser.error("give --train_dir, --validation_dir or --dataset_name")
    return arguments


def main(arguments: argparse.Namespace) -> int:
    """Checks, prints and draws; returns the number of errors.

    Raises:
        ValueError, OSError: if there are no data that could be checked.
    """
    settings = dict(vars(arguments))
    workers, limit, picture, file = (settings.pop(key) for key in ("num_workers", "max_samples", "picture", "json"))
    train, validation, _ = load_data(**settings, max_train_samples=limit, max_eval_samples=limit, check=False)
    splits = {"training": train, "validation": validation}
    datasets = {split: dataset for split, dataset in splits.items() if dataset is not None}
    reports = [examine(dataset, split, workers) for split, dataset in datasets.items()]
    findings = diagnose(reports)
    print(tables(reports), end="\n\n")
    sheet = overlays(next(iter(datasets.values())), reports[0])
    if picture and sheet is not None:
        sheet.save(picture)
        print(f"{picture}: images under their masks; look whether they fit")
    if file:
        Path(file).write_text(json.dumps(as_json(reports, findings), indent=1) + "\n")
    for finding in findings:
        print(f"{finding.level}: {finding.text}")
    errors, warnings = (sum(finding.level == level for finding in findings) for level in ("error", "warning"))
    verdict = (
        "do not train on these data yet" if errors else "look at the warnings, then train" if warnings else "ready"
    )
    print(f"verdict: {verdict} ({errors} errors, {warnings} warnings)")
    return errors


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    return min(1, main(parse_arguments(command_line)))
