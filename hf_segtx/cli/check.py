"""Tells what is wrong with a data set, and how to cure it, before a model is trained on it.

    segtx check --train_dir data/train --validation_dir data/val
    segtx check --train_dir data/cityscapes --output_dir checks/cityscapes
    segtx check --dataset_name USER/ade20k --max_train_samples 2000 --max_eval_samples 500

Reads every file once, in processes, and prints the histogram of raw values and classes with the images of each, mean
and std of the images, and a verdict: values outside the classes; masks of {0, 255}, in RGB, with smoothed edges or
ids shifted by one; masks of other sizes than their images, or that lie beside what they show; files that cannot be
read; classes that a split lacks; images that are in both splits. In --output_dir: `overlays.png`, sixteen images under
their masks, and all numbers in `check.json`. Exit status 0: ready (maybe with warnings), 1: errors.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from ..data.settings import DataSettings
from ..settings import setting
from .flags import FlagParser, check_output_dir
from .training_flags import named_flags


@dataclass
class CheckSettings:
    """Work and results."""

    output_dir: str = setting("data_check", "Folder for overlays.png and check.json.")
    num_workers: int = setting(2, "Processes that read.", "[0, 1024]")


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    parser = FlagParser("check", __doc__)
    parser.add_dataclass(DataSettings)
    parser.add_dataclass(CheckSettings)
    arguments = parser.parse_args(command_line)
    data, settings = (parser.values_of(dataclass_, arguments) for dataclass_ in (DataSettings, CheckSettings))
    check_output_dir(settings.output_dir)
    if not (data.train_dir or data.validation_dir or data.dataset_name):
        raise ValueError("give --train_dir, --validation_dir or --dataset_name")
    with named_flags(DataSettings, CheckSettings):
        return _check(data, settings)


def _check(data: DataSettings, settings: CheckSettings) -> int:
    """Checks, prints and draws; returns the exit status."""
    from ..data import load_data
    from ..data.diagnosis import as_json, diagnose, examine, overlays, tables

    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    train, validation, _ = load_data(data, check=False)
    datasets = {"training": train, "validation": validation}
    datasets = {split: dataset for split, dataset in datasets.items() if dataset is not None}
    reports = [examine(dataset, split, settings.num_workers) for split, dataset in datasets.items()]
    findings = diagnose(reports)
    print(tables(reports), end="\n\n")
    sheet = overlays(next(iter(datasets.values())), reports[0])
    if sheet is not None:
        sheet.save(folder / "overlays.png")
        print(f"{folder / 'overlays.png'}: images under their masks; look whether they fit")
    (folder / "check.json").write_text(json.dumps(as_json(reports, findings), indent=1) + "\n", encoding="utf-8")
    for finding in findings:
        print(f"{finding.level}: {finding.text}")
    errors, warnings = (sum(finding.level == level for finding in findings) for level in ("error", "warning"))
    verdict = (
        "do not train on these data yet" if errors else "look at the warnings, then train" if warnings else "ready"
    )
    print(f"verdict: {verdict} ({errors} errors, {warnings} warnings)")
    return min(1, errors)
