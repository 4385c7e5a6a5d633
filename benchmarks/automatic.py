"""Runs that configure themselves beside runs that are told everything, in the same time on the same machine.

    python benchmarks/automatic.py --camvid data/camvid --output_dir outputs/automatic            # hours: all
    python benchmarks/automatic.py --output_dir outputs/automatic --cases aerial --minutes 5 --contestants automatic

For each data set and time:

- automatic: `segtx train --train_dir ... --time_budget ...`, with everything that it decides and measures in the time;
- recipe: examples/recipes/segformer_b0_camvid.args, which was made by hand for CamVid;
- defaults: SegFormer-B0 with the defaults of `segtx train`;
- transformers: its SegformerForSemanticSegmentation-B0 in the same loop, with the settings of its example
  run_semantic_segmentation.py: batches of 8 random crops of 512x512, mirrored, rates from 5e-5 to 0.

All from random weights. The three others get as many steps as fill the time, by a measurement that is not charged, and
one evaluation, at the end. Each run is a process of its own, one after the other; what is already in the output folder
is not run again. Prints mean IoU in per cent as a Markdown table, `--seeds` for how far it spreads.

On a machine that others use as well, `--processor_time` makes all clocks count the time of the processor instead, of
one thread: ten minutes of it are about five by the clock on two cores.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from drawn_data import KINDS, write_drawn
from measure import machine


CONTESTANTS = ("automatic", "recipe", "defaults", "transformers")
COUNTS = {"large": (80, 16)}  # training and validation images; else 120 and 40
ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "examples/recipes/segformer_b0_camvid.args"
FLAGS = {
    "recipe": ["--recipe", str(RECIPE)],
    "defaults": ["--architecture", "segformer", "--size", "b0"],
    "transformers": "--architecture segformer --size b0 --scale_range 1 1 --learning_rate 5e-5 --weight_decay 0 "
    "--photometric none --max_grad_norm 1".split(),
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


def run_told(contestant: str, data: list[str], seconds: float, output_dir: str, seed: int) -> None:
    """A contestant; one without a budget of its own measures its steps, then takes as many as fill the time."""
    if contestant == "automatic":
        from hf_segtx.cli import train

        budget = ["--time_budget", f"{round(seconds)}s", "--seed", str(seed), "--overwrite_output_dir"]
        sys.exit(train.run([*data, *budget, "--output_dir", output_dir]))
    from hf_segtx.cli.training_flags import parse_training
    from hf_segtx.training.loop import TrainingRun
    from hf_segtx.training.setup import build_model

    if contestant == "transformers":
        from train_transformers_segformer import build_model

    def run(steps: int, folder: str, *more: str) -> dict:
        flags = [*FLAGS[contestant], *data, "--seed", str(seed), "--output_dir", folder, "--overwrite_output_dir"]
        flags += ["--max_train_steps", str(steps), "--evaluation_steps", str(steps), "--logging_steps", "5", *more]
        if "deep" in " ".join(data):
            flags += ["--num_channels", "5", "--image_mean", *["0.1"] * 5, "--image_std", *["0.1"] * 5]
        flags += ["--num_warmup_steps", "0"] if steps < 50 else []
        return TrainingRun(parse_training(flags), build_model).run()

    trial = run(TRIAL_STEPS, f"{output_dir}_trial")
    speeds = [entry["images_per_second"] for entry in trial["losses"]][1:]
    step_seconds = 8 * len(speeds) / sum(speeds)  # all of them take 8 images a step
    start, evaluation_seconds = 10, trial["images"] / trial["images_per_second"]
    run(max(10, int((seconds - start - evaluation_seconds) / step_seconds)), output_dir)


def run_case(contestant: str, case: str, minutes: float, seed: int, arguments: argparse.Namespace) -> dict | None:
    """What a run reached; of one that was there already, what it reached then."""
    folder = Path(arguments.output_dir) / f"{case}_{minutes:g}m_{contestant}_{seed}"
    file = folder / "benchmark.json"
    if file.is_file():
        return json.loads(file.read_text())
    data = data_of(case, arguments)
    words = ["--told", contestant, "--minutes", str(minutes), "--seeds", str(seed), "--output_dir", str(folder)]
    command = [sys.executable, __file__, *words, "--data", json.dumps(data)]
    command += ["--processor_time"] * arguments.processor_time
    start = time.perf_counter()
    with open(f"{folder}.log", "w") as log:
        ended = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
    if ended.returncode:
        print(f"{folder.name} failed; see {folder}.log", file=sys.stderr)
        return None
    results = json.loads((folder / "all_results.json").read_text())
    entry = {name: results[name] for name in ("mean_iou", "step", "training_seconds")}
    entry["seconds"] = round(time.perf_counter() - start, 1)
    file.write_text(json.dumps(entry) + "\n")
    return entry


def table(results: dict, contestants: list[str]) -> str:
    """Markdown, a row for each data set and time; of several seeds the mean and half the range."""
    rows = [["data", "minutes", *contestants], ["---", "---:", *["---:"] * len(contestants)]]
    for case, minutes in dict.fromkeys((case, minutes) for case, minutes, _ in results):
        cells = []
        for contestant in contestants:
            scores = [100 * entry["mean_iou"] for entry in results.get((case, minutes, contestant), []) if entry]
            spread = f" ± {(max(scores) - min(scores)) / 2:.1f}" if len(scores) > 1 else ""
            cells.append(f"{sum(scores) / len(scores):.2f}{spread}" if scores else "-")
        rows.append([case, f"{minutes:g}", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", help="folder with train/ and val/ of CamVid; without it these cases are left out")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--cases", nargs="+", default=["camvid", "camvid_40", *KINDS])
    parser.add_argument("--minutes", nargs="+", type=float, default=[5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--processor_time", action="store_true", help="count that of one thread, not the wall clock")
    parser.add_argument("--told", help=argparse.SUPPRESS)  # a run of its own
    parser.add_argument("--data", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.told:
        if arguments.processor_time:
            use_processor_time()
        seconds = 60 * arguments.minutes[0]
        run_told(arguments.told, json.loads(arguments.data), seconds, arguments.output_dir, arguments.seeds[0])
        return
    print(machine())
    Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)
    results = {}
    for case in arguments.cases:
        if case.startswith("camvid") and not arguments.camvid:
            continue
        for minutes in arguments.minutes:
            for contestant in arguments.contestants:
                runs = [run_case(contestant, case, minutes, seed, arguments) for seed in arguments.seeds]
                results[case, minutes, contestant] = runs
                print(f"{case}, {minutes:g} minutes, {contestant}: {runs}", flush=True)
    print(table(results, arguments.contestants))


if __name__ == "__main__":
    main()
