"""Runs that configure themselves beside runs that are told everything, in the same time on the same machine.

    python benchmarks/automatic.py --camvid data/camvid --output_dir outputs/automatic            # hours: all
    python benchmarks/automatic.py --output_dir outputs/automatic --cases aerial --minutes 5 --contestants automatic

For each data set and time:

- automatic: `segtx train --train_dir ... --time_budget ...`, with everything that it decides and measures in the time;
- recipe: examples/recipes/segformer_b0_camvid.args, which was made by hand for CamVid;
- defaults: SegFormer-B0 with the defaults of `segtx train`;
- transformers: its SegformerForSemanticSegmentation-B0 in the same loop, with the settings of its example
  run_semantic_segmentation.py: batches of 8 random crops of 512x512, mirrored, rates from 5e-5 to 0.

All from random weights, or with `--start FOLDER` all from that SegFormer-B0, with a new classifier for other classes.
The three others get as many steps as fill the time, by a measurement that is not charged, and one evaluation, at the
end. Each run is a process of its own, one after the other; what is already in the output folder is not run again.
Prints mean IoU in per cent of all runs in the output folder as Markdown tables, and `--page` writes them into a page;
several `--seeds` show how far it spreads. The contestant `automatic_b1` is told the size.

On a machine that others use as well, `--processor_time` makes all clocks count the time of the processor instead, of
one thread: ten minutes of it are about five by the clock on two cores.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from all import write_table
from drawn_data import KINDS, write_drawn
from measure import machine


CONTESTANTS = ("automatic", "recipe", "defaults", "transformers")
SIZES = ("automatic", "automatic_b1")  # of SegFormer
COUNTS = {"large": (80, 16)}  # training and validation images; else 120 and 40
ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "examples/recipes/segformer_b0_camvid.args"
RANDOM, *RECIPE_FLAGS = [line.split() for line in RECIPE.read_text().splitlines() if not line.startswith("#")]
FLAGS = {  # besides those that say where the weights come from
    "recipe": sum(RECIPE_FLAGS, []),
    "defaults": [],
    "transformers": "--scale_range 1 1 --learning_rate 5e-5 --weight_decay 0 --photometric none "
    "--max_grad_norm 1".split(),
}
TRIAL_STEPS = 12  # whose time is measured for the contestants that have no budget of their own


def data_of(case: str, arguments: argparse.Namespace) -> list[str]:
    """The flags of a case's data, which are drawn if need be."""
    if case.startswith("camvid"):
        camvid = Path(arguments.camvid)
        few = ["--max_train_samples", "40"] if case == "camvid_40" else []
        return ["--train_dir", str(camvid / "train"), "--validation_dir", str(camvid / "val"), *few]
    folder = Path(arguments.output_dir) / "data" / case
    counts = COUNTS.get(case, (120, 40))
    for seed, (part, count) in enumerate(zip(("train", "val"), counts, strict=True)):
        if not (folder / part / "classes.json").is_file():
            write_drawn(case, folder / part, count, seed)
    return ["--train_dir", str(folder / "train"), "--validation_dir", str(folder / "val")]


def use_processor_time() -> None:
    """All clocks of this process count its processor time, and its threads are one; before anything is imported."""
    os.environ["OMP_NUM_THREADS"] = "1"
    time.perf_counter = time.process_time


def run_told(contestant: str, data: list[str], start: str | None, seconds: float, output_dir: str, seed: int) -> None:
    """A contestant; one without a budget of its own measures its steps, then takes as many as fill the time."""
    weights = ["--model_name_or_path", start] if start else []
    if contestant.startswith("automatic"):
        from hf_segtx.cli import train

        if size := contestant.partition("_")[2]:
            weights = ["--architecture", "segformer", "--size", size]
        budget = ["--time_budget", f"{round(seconds)}s", "--seed", str(seed), "--overwrite_output_dir"]
        sys.exit(train.run([*data, *weights, *budget, "--output_dir", output_dir]))
    from hf_segtx.cli.training_flags import parse_training
    from hf_segtx.training.loop import TrainingRun
    from hf_segtx.training.setup import build_model

    if contestant == "transformers":
        from train_transformers_segformer import build_model

    def run(steps: int, folder: str, *more: str) -> dict:
        flags = [*(weights or RANDOM), *FLAGS[contestant], *data, "--seed", str(seed)]
        flags += ["--output_dir", folder, "--overwrite_output_dir"]
        flags += ["--max_train_steps", str(steps), "--evaluation_steps", str(steps), "--logging_steps", "5", *more]
        if "deep" in " ".join(data):
            flags += ["--num_channels", "5", "--image_mean", *["0.1"] * 5, "--image_std", *["0.1"] * 5]
        flags += ["--num_warmup_steps", "0"] if steps < 50 else []
        return TrainingRun(parse_training(flags), build_model).run()

    trial = run(TRIAL_STEPS, f"{output_dir}_trial")
    speeds = [entry["images_per_second"] for entry in trial["losses"]][1:]
    step_seconds = 8 * len(speeds) / sum(speeds)  # all of them take 8 images a step
    setting_up, evaluation_seconds = 10, trial["images"] / trial["images_per_second"]
    run(max(10, int((seconds - setting_up - evaluation_seconds) / step_seconds)), output_dir)


def run_case(contestant: str, case: str, minutes: float, seed: int, arguments: argparse.Namespace) -> dict | None:
    """What a run reached; of one that was there already, what it reached then."""
    start = "_started" if arguments.start else ""
    folder = Path(arguments.output_dir) / f"{case}_{minutes:g}m_{contestant}_{seed}{start}"
    file = folder / "benchmark.json"
    if file.is_file():
        return json.loads(file.read_text())
    data = data_of(case, arguments)
    words = ["--told", contestant, "--minutes", str(minutes), "--seeds", str(seed), "--output_dir", str(folder)]
    command = [sys.executable, __file__, *words, "--data", json.dumps(data)]
    command += ["--processor_time"] * arguments.processor_time
    command += ["--start", str(Path(arguments.start).resolve())] if arguments.start else []
    began = time.perf_counter()
    with open(f"{folder}.log", "w") as log:
        ended = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
    if ended.returncode:
        print(f"{folder.name} failed; see {folder}.log", file=sys.stderr)
        return None
    results = json.loads((folder / "all_results.json").read_text())
    entry = {"case": case, "minutes": minutes, "contestant": contestant, "seed": seed, "started": bool(arguments.start)}
    entry |= {name: results[name] for name in ("mean_iou", "step", "training_seconds")}
    entry["seconds"] = round(time.perf_counter() - began, 1)
    file.write_text(json.dumps(entry) + "\n")
    return entry


def table(folder: Path, contestants: tuple[str, ...], least: int) -> str:
    """Markdown of all runs in the folder, a row for each data set and time; of several seeds mean and half the range.

    Args:
        least: contestants that a row must have.
    """
    scores = {}
    for file in sorted(folder.glob("*/benchmark.json")):
        run = json.loads(file.read_text())
        row = scores.setdefault((run["case"] + ", from a model of other data" * run["started"], run["minutes"]), {})
        row.setdefault(run["contestant"], []).append(100 * run["mean_iou"])
    lines = [["data", "minutes", *contestants], ["---", "---:", *["---:"] * len(contestants)]]
    for (case, minutes), row in sorted(scores.items()):
        found = [row.get(contestant, []) for contestant in contestants]
        means = [f"{sum(part) / len(part):.2f}" if part else "" for part in found]
        spreads = [f" ± {(max(part) - min(part)) / 2:.2f}" if len(part) > 1 else "" for part in found]
        cells = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
        lines += [[case, f"{minutes:g}", *cells]] * (len([part for part in found if part]) >= least)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", help="folder with train/ and val/ of CamVid; without it these cases are left out")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--cases", nargs="*", default=["camvid", "camvid_40", *KINDS])
    parser.add_argument("--minutes", nargs="+", type=float, default=[5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--contestants", nargs="+", choices=[*CONTESTANTS, *SIZES[1:]], default=CONTESTANTS)
    parser.add_argument("--processor_time", action="store_true", help="count that of one thread, not the wall clock")
    parser.add_argument("--start", help="folder of a SegFormer-B0 of this package, which all start from")
    parser.add_argument("--page", help="Markdown file with places for the tables, such as docs/automatic.md")
    parser.add_argument("--told", help=argparse.SUPPRESS)  # a run of its own
    parser.add_argument("--data", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.told:
        if arguments.processor_time:
            use_processor_time()
        seconds = 60 * arguments.minutes[0]
        seed, data = arguments.seeds[0], json.loads(arguments.data)
        run_told(arguments.told, data, arguments.start, seconds, arguments.output_dir, seed)
        return
    print(machine())
    Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)
    for case in arguments.cases:
        if case.startswith("camvid") and not arguments.camvid:
            continue
        for minutes, contestant in itertools.product(arguments.minutes, arguments.contestants):
            runs = [run_case(contestant, case, minutes, seed, arguments) for seed in arguments.seeds]
            print(f"{case}, {minutes:g} minutes, {contestant}: {runs}", flush=True)
    folder = Path(arguments.output_dir)
    tables = {"automatic": table(folder, CONTESTANTS, 1), "sizes": table(folder, SIZES, 2)}
    print(*tables.values(), sep="\n\n")
    if arguments.page:
        page = Path(arguments.page)
        for name, text in tables.items():
            page.write_text(write_table(page.read_text(encoding="utf-8"), name, text), encoding="utf-8")


if __name__ == "__main__":
    main()
