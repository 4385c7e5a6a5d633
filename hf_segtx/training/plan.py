"""Plans a training run: measures single steps on this machine and finds the settings that fit and are fastest.

    plan = make_plan(Arguments(size="b0", max_train_steps=1000), num_labels=150)
    plan.arguments.per_device_train_batch_size, plan.step.memory, plan.seconds

Every measurement has a process of its own, for one peak of memory is not to hide behind another; memory is taken to
grow evenly with the micro-batch, and the proposal itself is measured at last.
"""

import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from ..data.labels import Labels
from . import setup
from .arguments import Arguments
from .machine import is_out_of_memory, keep_freed_memory, peak_memory, use_cores
from .optim import EMA


@dataclass
class Step:
    """What was measured of one micro-batch: peak memory in 1e9 bytes, seconds forward and backward, of the update."""

    memory: float
    seconds: float
    update_seconds: float


@dataclass
class Plan:
    """The proposal.

    Attributes:
        arguments: with crop, precision, checkpointing and micro-batch chosen.
        step: what was measured of its micro-batch.
        images: of one optimizer step, over all processes.
        micro_batches: of one optimizer step, in each process.
        total_steps: optimizer steps of the run.
    """

    arguments: Arguments
    step: Step
    images: int
    micro_batches: int
    total_steps: int

    @property
    def seconds(self) -> float:
        """Of one optimizer step."""
        return self.micro_batches * self.step.seconds + self.step.update_seconds


def measure(arguments: Arguments, labels: Labels) -> Step | None:
    """Trains three micro-batches of noise, all that a run does with them; None if there is not enough memory."""
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=arguments.mixed_precision)
    use_cores(accelerator, arguments.num_threads)
    keep_freed_memory(accelerator.device)
    if arguments.tf32:
        torch.set_float32_matmul_precision("high")
    model, _ = setup.build_model(arguments, labels)
    class_weights = [1.0] * labels.num_ids if arguments.class_weights else None
    model.loss_function = setup.build_loss(arguments, class_weights, accelerator)[1]
    setup.choose_parameters(arguments, model)
    try:
        return _measured(arguments, accelerator, model, labels.num_ids)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            return None
        raise


def _measured(arguments: Arguments, accelerator: Accelerator, model, num_ids: int) -> Step:
    model, optimizer, _ = setup.prepare(arguments, accelerator, model, arguments.num_warmup_steps + 1)
    ema = EMA(accelerator.unwrap_model(model), arguments.ema_decay) if arguments.ema_decay is not None else None
    size = arguments.per_device_train_batch_size, arguments.crop_size[0], arguments.crop_size[-1]
    channels = getattr(accelerator.unwrap_model(model).config, "num_channels", 3)
    pixel_values = torch.randn(size[0], channels, *size[1:], device=accelerator.device)
    label = torch.randint(num_ids, size, device=accelerator.device)
    model.train()
    times = []
    for _ in range(3):
        marks = [time.perf_counter()]
        accelerator.backward(model(pixel_values=pixel_values, labels=label).loss)
        marks.append(_now(accelerator))
        accelerator.clip_grad_norm_(model.parameters(), arguments.max_grad_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        if ema:
            ema.update()
        marks.append(_now(accelerator))
        times.append((marks[1] - marks[0], marks[2] - marks[1]))
    return Step(peak_memory(), *map(min, zip(*times[1:], strict=True)))  # the first one also warms up


def _now(accelerator: Accelerator) -> float:
    """The time when the device has done its work."""
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def in_new_process(function: Callable, *arguments):
    """What a function returns in a process of its own; None if the system killed that, as it does for its memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            return None


def measure_apart(arguments: Arguments, labels: Labels) -> Step | None:
    """`measure` in a new process; None also if the system killed it for its memory."""
    return in_new_process(measure, arguments, labels)


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


def smaller_crops(crop: list[int]) -> Iterator[list[int]]:
    """The crop, then three quarters and half of it, in multiples of 32 pixels."""
    yield list(crop)
    for share in (0.75, 0.5):
        yield [max(32, int(side * share) // 32 * 32) for side in crop]


class Measurements:
    """Measured micro-batches, shown as rows of a table.

    Args:
        budget: memory to fill, in 1e9 bytes.
        show: gets each row.
    """

    def __init__(self, labels: Labels, budget: float, show: Callable[[str], None]):
        self.labels = labels
        self.budget = budget
        self.show = show
        show(f"{'crop':>10} {'precision':>9} {'checkpointing':>13} {'images':>6} {'GB':>7} {'images/s':>8}")

    def row(self, settings: Arguments, images: int) -> Step | None:
        """Of a micro-batch of so many images; None if it does not fit."""
        settings = replace(settings, per_device_train_batch_size=images)
        step = measure_apart(settings, self.labels)
        crop, checkpointing = settings.crop_size, "yes" if settings.gradient_checkpointing else "no"
        shown = f"{step.memory:7.2f} {images / step.seconds:8.2f}" if step else "  does not fit"
        size = f"{crop[0]}x{crop[-1]}"
        self.show(f"{size:>10} {settings.mixed_precision:>9} {checkpointing:>13} {images:6d} {shown}")
        return step if step and step.memory <= self.budget else None

    def candidate(self, settings: Arguments, images_per_step: int) -> tuple[float, list[int]] | None:
        """Estimated seconds of a step, and the micro-batches that divide it and should fit, largest first."""
        one = self.row(settings, 1)
        if one is None:
            return None
        two = self.row(settings, 2) if images_per_step > 1 else one
        largest = 1
        if two is not None:
            largest = 1 + int((self.budget - one.memory) / max(two.memory - one.memory, 1e-3))
        step = two or one
        seconds = images_per_step * step.seconds / (1 if step is one else 2) + step.update_seconds
        return seconds, [n for n in range(min(largest, images_per_step), 0, -1) if images_per_step % n == 0]


def propose(arguments: Arguments, images_per_step: int, measurements: Measurements) -> tuple[Arguments, Step]:
    """The fastest arguments whose step fits, and what was measured of them.

    Args:
        images_per_step: of one process.

    Raises:
        ValueError: if nothing fits.
    """
    precisions = [arguments.mixed_precision or "no"]
    if arguments.mixed_precision is None:
        precisions.append("bf16")
    for crop in smaller_crops(arguments.crop_size):
        fitting = []  # (seconds a step, micro-batches that divide it, settings)
        for precision in precisions:
            for checkpointing in [True] if arguments.gradient_checkpointing else [False, True]:
                settings = replace(
                    arguments, crop_size=crop, mixed_precision=precision, gradient_checkpointing=checkpointing
                )
                if (found := measurements.candidate(settings, images_per_step)) is None:
                    continue
                fitting.append((*found, settings))
                if found[1][0] == images_per_step:  # no need to save memory
                    break
        for _, sizes, settings in sorted(fitting, key=lambda entry: entry[0]):
            for images in sizes:
                if (step := measurements.row(settings, images)) is not None:
                    return replace(settings, per_device_train_batch_size=images), step
    raise ValueError(
        f"not even one image of {crop[0]}x{crop[-1]} pixels fits into {measurements.budget:.1f} GB; choose a smaller "
        "`size`"
    )


def make_plan(
    arguments: Arguments,
    *,
    num_labels: int | None = None,
    num_images: int | None = None,
    num_processes: int = 1,
    memory_gb: float | None = None,
    show: Callable[[str], None] = print,
) -> Plan:
    """Measures and proposes; nothing is trained.

    Args:
        num_labels: classes; None reads the data, for the number of images too.
        num_images: training images, needed with `num_labels` where the arguments count epochs.
        num_processes: devices like this one that train together.
        memory_gb: memory to fill, in 1e9 bytes; None is nine tenths of what is free.
        show: gets each line of the table.

    Raises:
        ValueError, OSError: if data or model cannot be read, numbers do not fit together, or nothing fits.
    """
    if num_labels:
        labels = Labels.from_id2label({index: f"class {index}" for index in range(num_labels)})
    else:
        dataset, _, labels = setup.read_data(arguments, check=False)
        num_images = len(dataset)
    of_process = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    images = arguments.total_batch_size or of_process * num_processes
    if images % num_processes:
        raise ValueError(f"{num_processes} processes cannot share {images} images; choose a divisor of them")
    total_steps = arguments.max_train_steps
    if total_steps is None:
        if num_images is None:
            raise ValueError("the recipe counts epochs; add num_images, or max_train_steps")
        total_steps = math.ceil(arguments.num_train_epochs * math.ceil(num_images / images))
    budget = memory_gb or 0.9 * free_memory()
    show(f"{labels.num_ids} classes, {total_steps} steps of {images} images, {budget:.1f} GB of memory to fill")
    chosen, step = propose(arguments, images // num_processes, Measurements(labels, budget, show))
    micro_batches = images // num_processes // chosen.per_device_train_batch_size
    return Plan(chosen, step, images, micro_batches, total_steps)
