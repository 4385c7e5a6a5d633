"""Training with segtx train beside transformers' Trainer as its segmentation example uses it, on the same files.

    OMP_NUM_THREADS=2 python benchmarks/training.py                     # SegFormer-B0, batch 4, crops of 320x320
    OMP_NUM_THREADS=2 python benchmarks/training.py --size b1 --batch_size 2 --crop_size 512

Whole steps: reading, decoding and cropping pictures, forward, backward, update with AdamW. The Trainer gets
transformers' SegFormer and crops and flips as run_semantic_segmentation.py does; train.py also changes colours. Each
turn is a process of its own, one after the other (A B A B ...), which loads nothing but what it needs. The first steps
of a turn are not counted. Prints medians and their ratios; memory is the peak of the process above what it had when
everything was imported.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from measure import machine, resident


WARM_UP = 3  # steps


def ours(arguments: argparse.Namespace, folder: Path) -> tuple[list[float], int]:
    """Seconds of each step of `segtx train`, and peak memory in bytes above the start."""
    from hf_segtx.cli.training_flags import parse_training
    from hf_segtx.training import train

    before = resident("VmRSS")
    flags = f"--architecture segformer --size {arguments.size} --crop_size {arguments.crop_size} --scale_range 1 1"
    flags += f" --per_device_train_batch_size {arguments.batch_size} --max_train_steps {arguments.steps + WARM_UP}"
    flags += f" --learning_rate 6e-5 --logging_steps 1 --max_eval_samples 1 --train_dir {folder}"
    flags += f" --validation_dir {folder} --output_dir {folder / f'run_{os.getpid()}'}"
    results = train(parse_training(flags.split()))
    seconds = [arguments.batch_size / entry["images_per_second"] for entry in results["losses"]]
    return seconds, resident("VmHWM") - before


def theirs(arguments: argparse.Namespace, folder: Path) -> tuple[list[float], int]:
    """The same of transformers' Trainer."""
    import transformers
    from data import transformers_dataset

    from hf_segtx.data.folders import folder_records
    from hf_segtx.models.configuration_segformer import SIZES

    before = resident("VmRSS")
    names = json.loads((folder / "id2label.json").read_text())
    config = transformers.SegformerConfig(**SIZES[arguments.size], num_labels=len(names))
    ends = []

    class Clock(transformers.TrainerCallback):
        def on_train_begin(self, *_, **__):
            ends.append(time.perf_counter())

        on_step_end = on_train_begin

    settings = transformers.TrainingArguments(
        output_dir=folder / f"run_{os.getpid()}",
        per_device_train_batch_size=arguments.batch_size,
        max_steps=arguments.steps + WARM_UP,
        learning_rate=6e-5,
        lr_scheduler_type="polynomial",
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
    )
    transformers.Trainer(
        transformers.SegformerForSemanticSegmentation(config),
        settings,
        train_dataset=transformers_dataset(folder_records(folder), [arguments.crop_size] * 2),
        callbacks=[Clock()],
    ).train()
    return [end - begin for begin, end in zip(ends, ends[1:], strict=False)], resident("VmHWM") - before


def silenced(function, *inputs):
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        return function(*inputs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="b0", help="of SegFormer")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--crop_size", type=int, default=320, help="side in pixels, at most 512")
    parser.add_argument("--num_labels", type=int, default=150)
    parser.add_argument("--steps", type=int, default=10, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(machine())

    seconds, memory = {"transformers": [], "hf_segtx": []}, {"transformers": [], "hf_segtx": []}
    with tempfile.TemporaryDirectory() as temporary:
        from data import write_scenes

        folder = Path(temporary) / "data"
        write_scenes(folder, 64, (512, 672), ".jpg")
        names = {index: f"class {index}" for index in range(arguments.num_labels)}
        (folder / "id2label.json").write_text(json.dumps(names))
        for _ in range(arguments.rounds):
            for name, function in (("transformers", theirs), ("hf_segtx", ours)):
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                    of_steps, peak = pool.submit(silenced, function, arguments, folder).result()
                seconds[name] += of_steps[WARM_UP:]
                memory[name].append(peak)
    print(
        f"SegFormer-{arguments.size.upper()}, {arguments.num_labels} classes, {arguments.batch_size} crops of "
        f"{arguments.crop_size}x{arguments.crop_size} a step"
    )
    rates = {name: 1 / statistics.median(values) for name, values in seconds.items()}
    peaks = {name: statistics.median(values) for name, values in memory.items()}
    for name in rates:
        print(f"{name:>12}: {rates[name]:.2f} steps/s, {peaks[name] / 2**20:.0f} MiB")
    faster, share = rates["hf_segtx"] / rates["transformers"], peaks["hf_segtx"] / peaks["transformers"]
    print(f"hf_segtx: {faster:.2f}x faster in {share:.0%} of the memory")


if __name__ == "__main__":
    main()
