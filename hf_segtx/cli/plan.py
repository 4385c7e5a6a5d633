"""Plans a training run: measures single steps on this machine and says which settings fit and how long they take.

    python examples/plan.py --recipe examples/recipes/segformer_b0_ade20k_512.args --num_labels 150
    python examples/plan.py --train_dir data/train --architecture setr --size base --max_train_steps 40000
    python examples/plan.py --recipe examples/recipes/ocrnet_hrnet_w48_lip_473.args --num_labels 20 --num_images 30462
    python examples/plan.py --recipe examples/recipes/segformer_b5_ade20k_640.args --num_labels 150 --num_processes 8

It takes the flags of train.py and reads its data for the number of classes and images, unless `--num_labels` (and,
where the recipe counts epochs, `--num_images`) say them. Nothing is trained: the images are noise, the updates thrown
away. What comes out is a table of what was measured, and the command to run, with

- the micro-batch: the largest that divides the images of a step and fits into `--memory_gb` (default: nine tenths of
  what is free), so the step and with it the recipe stay the same. Batch norms see the micro-batch only;
- gradient checkpointing, if it does not fit without, and bf16 where it is faster, unless the flags say one already;
- a smaller crop only if not even one image fits.

Every measurement has a process of its own, for one peak of memory is not to hide behind another; memory is taken to
grow evenly with the micro-batch, and the proposal itself is measured at last. The hours are those of the steps:
reading images is hidden behind them if there are enough `--dataloader_num_workers`, evaluations come on top. With
`--num_processes` each process is taken to have a device like this one, and exchanging gradients to cost nothing.
"""

import argparse
import math
import multiprocessing
import shlex
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator

from ..data.labels import Labels
from ..training.machine import keep_freed_memory, peak_memory, use_all_cores
from ..training.optim import EMA
from . import train


@dataclass
class Step:
    """What was measured of one micro-batch: peak memory in 1e9 bytes, seconds forward and backward, of the update."""

    memory: float
    seconds: float
    update_seconds: float


def measure(arguments: train.Arguments, labels: Labels) -> Step | None:
    """Trains three micro-batches of noise, all that train.py does with them; None if there is not enough memory."""
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=arguments.mixed_precision)
    use_all_cores(accelerator)
    keep_freed_memory(accelerator)
    if arguments.tf32:
        torch.set_float32_matmul_precision("high")
    model, _ = train.build_model(arguments, labels)
    class_weights = [1.0] * labels.num_ids if arguments.class_weights else None
    model.loss_function = train.build_loss(arguments, class_weights, accelerator)[1]
    train.choose_parameters(arguments, model)
    size = arguments.per_device_train_batch_size, arguments.crop_size[0], arguments.crop_size[-1]
    try:
        model, optimizer, _ = train.prepare(arguments, accelerator, model, arguments.num_warmup_steps + 1)
        ema = EMA(accelerator.unwrap_model(model), arguments.ema_decay) if arguments.ema_decay is not None else None
        channels = getattr(accelerator.unwrap_model(model).config, "num_channels", 3)
        pixel_values = torch.randn(size[0], channels, *size[1:], device=accelerator.device)
        label = torch.randint(labels.num_ids, size, device=accelerator.device)
        model.train()
        times = []
        for _ in range(3):
            marks = [time.perf_counter()]
            accelerator.backward(model(pixel_values=pixel_values, labels=label).loss)
            marks.append(now(accelerator))
            accelerator.clip_grad_norm_(model.parameters(), arguments.max_grad_norm or math.inf)
            optimizer.step()
            optimizer.zero_grad()
            if ema:
                ema.update()
            marks.append(now(accelerator))
            times.append((marks[1] - marks[0], marks[2] - marks[1]))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
            return None
        raise
    return Step(peak_memory(), *map(min, zip(*times[1:], strict=True)))  # the first one also warms up


def now(accelerator: Accelerator) -> float:
    """The time when the device has done its work."""
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure_apart(arguments: train.Arguments, labels: Labels) -> Step | None:
    """`measure` in a new process; None also if the system killed it for its memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure, arguments, labels).result()
        except BrokenProcessPool:
            return None


def free_memory() -> float:
    """Of the GPU, or of the machine or the container on a CPU, in 1e9 bytes."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] / 1e9
    import psutil

    free = psutil.virtual_memory().available
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free / 1e9


def smaller_crops(crop: list[int]):
    """The crop, then three quarters and half of it, in multiples of 32 pixels."""
    yield list(crop)
    for share in (0.75, 0.5):
        yield [max(32, int(side * share) // 32 * 32) for side in crop]


def propose(
    arguments: train.Arguments, labels: Labels, images_per_step: int, budget: float
) -> tuple[train.Arguments, Step]:
    """The fastest arguments whose step fits into `budget` (1e9 bytes), and what was measured of them; prints all.

    Args:
        images_per_step: of one process.

    Raises:
        UserError: if nothing fits.
    """
    precisions = [arguments.mixed_precision or "no"]
    if arguments.mixed_precision is None:
        precisions.append("bf16")
    print(f"{'crop':>10} {'precision':>9} {'checkpointing':>13} {'images':>6} {'GB':>7} {'images/s':>8}")

    def row(settings: train.Arguments) -> Step | None:
        step = measure_apart(settings, labels)
        crop, images = settings.crop_size, settings.per_device_train_batch_size
        shown = f"{step.memory:7.2f} {images / step.seconds:8.2f}" if step else "  does not fit"
        checkpointing = "yes" if settings.gradient_checkpointing else "no"
        print(
            f"{f'{crop[0]}x{crop[-1]}':>10} {settings.mixed_precision:>9} {checkpointing:>13} {images:6d} {shown}",
            flush=True,
        )
        return step if step and step.memory <= budget else None

    for crop in smaller_crops(arguments.crop_size):
        fitting = []  # (seconds a step, micro-batches that divide it, settings)
        for precision in precisions:
            for checkpointing in [True] if arguments.gradient_checkpointing else [False, True]:
                settings = replace(
                    arguments, crop_size=crop, mixed_precision=precision, gradient_checkpointing=checkpointing
                )
                one = row(replace(settings, per_device_train_batch_size=1))
                if one is None:
                    continue
                two = row(replace(settings, per_device_train_batch_size=2)) if images_per_step > 1 else one
                largest = 1
                if two is not None:
                    largest = 1 + int((budget - one.memory) / max(two.memory - one.memory, 1e-3))
                step = two or one
                seconds = images_per_step * step.seconds / (1 if step is one else 2) + step.update_seconds
                sizes = [n for n in range(min(largest, images_per_step), 0, -1) if images_per_step % n == 0]
                fitting.append((seconds, sizes, settings))
                if sizes[0] == images_per_step:  # no need to save memory
                    break
        for _, sizes, settings in sorted(fitting, key=lambda entry: entry[0]):
            for images in sizes:
                chosen = replace(settings, per_device_train_batch_size=images)
                if (step := row(chosen)) is not None:
                    return chosen, step
    raise train.UserError(
        f"not even one image of {crop[0]}x{crop[-1]} pixels fits into {budget:.1f} GB; choose a smaller --size"
    )


def main(command_line: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="plan.py", allow_abbrev=False, epilog="All other flags: those of train.py.")
    parser.add_argument("--num_labels", type=int, help="Number of classes; default: that of the data.")
    parser.add_argument("--num_images", type=int, help="Number of training images; default: that of the data.")
    parser.add_argument("--num_processes", type=int, default=1, help="Devices like this one to train on together.")
    parser.add_argument("--memory_gb", type=float, help="Memory to fill, 1e9 bytes; default: 0.9 of what is free.")
    own, rest = parser.parse_known_args(command_line)
    arguments = train.parse_arguments(rest)
    train.check_arguments(arguments)
    if own.num_labels:
        labels = Labels.from_id2label({index: f"class {index}" for index in range(own.num_labels)})
        images = own.num_images
    else:
        dataset, _, labels = train.read_data(arguments, check=False)
        images = len(dataset)
    per_step = arguments.total_batch_size
    of_process = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    per_step = per_step or of_process * own.num_processes
    if own.num_processes < 1 or per_step % own.num_processes:
        raise train.UserError(f"{own.num_processes} processes cannot share {per_step} images; choose a divisor of them")
    of_process = per_step // own.num_processes
    total_steps = arguments.max_train_steps
    if total_steps is None:
        if images is None:
            raise train.UserError("the recipe counts epochs; add --num_images, or --max_train_steps")
        total_steps = math.ceil(arguments.num_train_epochs * math.ceil(images / per_step))
    budget = own.memory_gb or 0.9 * free_memory()
    print(f"{labels.num_ids} classes, {total_steps} steps of {per_step} images, {budget:.1f} GB of memory to fill")
    chosen, step = propose(arguments, labels, of_process, budget)

    micro_batches = of_process // chosen.per_device_train_batch_size
    seconds = micro_batches * step.seconds + step.update_seconds
    added = {"total_batch_size": per_step, "per_device_train_batch_size": chosen.per_device_train_batch_size}
    added["mixed_precision"] = chosen.mixed_precision
    words = [f"--{name} {value}" for name, value in added.items()]
    words += ["--gradient_checkpointing"] * chosen.gradient_checkpointing
    if chosen.crop_size != arguments.crop_size:
        words.append(f"--crop_size {' '.join(map(str, chosen.crop_size))}")
    launcher = "segtx"
    if own.num_processes > 1:
        launcher = f"accelerate launch --num_processes {own.num_processes} -m hf_segtx"
    of_all = "" if own.num_processes == 1 else f" of each of {own.num_processes} processes"
    print(
        f"a step of {micro_batches} x {chosen.per_device_train_batch_size} images{of_all} takes {seconds:.2f} s and "
        f"{step.memory:.1f} GB; {total_steps} steps take {timedelta(seconds=round(total_steps * seconds))} hours:\n"
        f"{launcher} train {shlex.join(rest)} {' '.join(words)}"
    )


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    main(command_line)
    return 0
