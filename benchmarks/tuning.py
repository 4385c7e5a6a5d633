"""What the values of --tune, and cached features, cost and bring: the same run with each, in a process of its own.

    python benchmarks/tuning.py --output_dir outputs/tuning --processor_time -- --train_dir data/camvid/train \\
        --validation_dir data/camvid/val --backbone_weights nvidia/mit-b0 --crop_size 240 320 --max_train_steps 92

Whatever follows -- are flags of `segtx train`. Prints a Markdown table: parameters that train, seconds of a step, the
most memory that the process (or the GPU) had before its evaluation, mean IoU in per cent. What the cache took to be
written stands apart: it is written once.

On a machine that others use as well, `--processor_time` makes all clocks count the time of the processor instead, of
one thread.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path


CONTESTANTS = {
    "full": ["--tune", "full"],
    "lora": ["--tune", "lora"],
    "frozen": ["--tune", "frozen"],
    "frozen, cached features": ["--tune", "frozen", "--cache_features"],
    "linear": ["--tune", "linear"],
    "linear, cached features": ["--tune", "linear", "--cache_features"],
}
COLUMNS = {"trained": 3, "seconds": 3, "memory": 2, "loss": 4, "mean_iou": 2}  # and their digits


def run_one(name: str, folder: Path, flags: list[str]) -> dict:
    """A run; what is measured of it."""
    from hf_segtx.cli.training_flags import parse_training
    from hf_segtx.training.loop import TrainingRun

    words = [*CONTESTANTS[name], *[str(folder.parent / "features")] * ("cached" in name)]
    words += ["--evaluation_steps", "1000000", "--output_dir", str(folder), "--overwrite_output_dir"]
    run = TrainingRun(parse_training([*flags, *words]))
    trained = sum(value.numel() for value in run.bare_model.parameters() if value.requires_grad)
    results = run.run()
    steps = results["losses"][1:]  # the first ones also warm up
    return {
        "trained": trained / 1e6,
        "seconds": sum(run.steps.images / entry["images_per_second"] for entry in steps) / len(steps),
        "memory": steps[-1]["memory_gb"],  # before the evaluation, of which there is one, at the end
        "loss": results["losses"][-1]["loss"],
        "mean_iou": 100 * results["mean_iou"],
    }


def main() -> None:
    """Runs all, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/tuning"))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--processor_time", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("flags", nargs="*")
    arguments = parser.parse_args()
    if arguments.processor_time:  # before anything else is imported
        os.environ["OMP_NUM_THREADS"] = "1"
        time.perf_counter = time.process_time
    if arguments.one:
        folder = arguments.output_dir / arguments.one.replace(", ", "_").replace(" ", "_")
        (arguments.output_dir / "measured.json").write_text(json.dumps(run_one(arguments.one, folder, arguments.flags)))
        return
    from measure import machine  # imports torch

    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    print(machine())
    print("| run | M parameters train | s a step | GB | loss | mean IoU |\n|---|---|---|---|---|---|", flush=True)
    for name in arguments.contestants:
        words = ["--output_dir", str(arguments.output_dir), *["--processor_time"] * arguments.processor_time]
        command = [sys.executable, __file__, *words, "--one", name, "--", *arguments.flags]
        with (arguments.output_dir / f"{name}.log").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
        found = json.loads((arguments.output_dir / "measured.json").read_text())
        columns = [f"{found[key]:.{digits}f}" for key, digits in COLUMNS.items()]
        print(f"| {name} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
