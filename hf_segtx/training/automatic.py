"""A run that configures itself: from its data, the weights in reach, the machine and the time there is.

    arguments = Arguments(train_dir="data", time_budget="30m")
    automatic = configure(arguments, given={"train_dir", "time_budget"})   # completes the arguments, says each decision
    TrainingRun(arguments, automatic=automatic).run()

Each `decide_...` is a pure function of measured facts and returns decisions, each with its reason. What is among the
given is left alone. What was decided is frozen into the run's `train.args`, a recipe like any other, so that resuming
and a second run from the file are the same run. Only the number of steps is settled later: it is set anew once, at the
first evaluation, when the real speed is known. Until then the learning rate does not depend on it: the schedule warms
up, stays, and decays in the last part of the run ("wsd").
"""

import json
import math
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.state import PartialState
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from transformers import PreTrainedConfig

from ..data.labels import Labels, flip_permutation
from ..hub import HUB_ERRORS
from . import plan, setup
from .arguments import Arguments, config_overrides
from .data_facts import DataFacts, file_channels, measure_facts
from .machine import everywhere


USED_SHARE = 0.97  # of the budget: it is kept within 10 %, and a machine is rarely faster than measured
FIRST_EVALUATION_SECONDS = 110  # after the start of the command, so that a hopeless run is seen within two minutes
FIRST_EVALUATION_SHARE = 0.2  # of the budget, if that is earlier
EVALUATION_SHARE = 0.12  # of the budget, for all evaluations together
REPORT_EVALUATIONS = 3.0  # what the last evaluation, the best model's and the report take, in evaluations
WANTED_STEPS = 1000  # from random weights, fewer hardly leave the most frequent classes
START_SECONDS = 5.0  # to build the model, and to write it at the end
FORWARD_SHARE = 0.45  # of a step's time, which an image of as many pixels takes in evaluation
CPU_CROP_MEGAPIXELS = 0.16  # of a crop, where nothing else is known
RAREST = 1e-4  # of the pixels, for the weight of a class
TRIAL_MEGAPIXELS = 400.0  # of crops that the steps whose speed is measured are meant for
SMALLEST_SHORT_EDGE = 192  # pixels that an image is shown at, at least: 6 cells of the last stage
HUB_SECONDS = 3.0  # to ask the Hub once

# Pre-trained backbones, and whose they are, by architecture and size.
BACKBONES = {("segformer", size): f"nvidia/mit-{size}" for size in ("b0", "b1", "b2", "b3", "b4", "b5")}


BATCH_ARGUMENTS = frozenset(("total_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps"))
LENGTH_ARGUMENTS = frozenset(("max_train_steps", "num_train_epochs"))


class Decision(NamedTuple):
    """What an argument is set to, and why."""

    name: str
    value: object
    reason: str

    def __str__(self) -> str:
        value = " ".join(map(str, self.value)) if isinstance(self.value, list) else self.value
        return f"{self.name} {value}: {self.reason}"


class Rates(NamedTuple):
    """How an architecture is trained, and who says so."""

    optimizer: str
    learning_rate: float
    head_lr_multiplier: float
    weight_decay: float
    source: str


RANDOM_RATES = {
    "segformer": Rates("adamw", 1.5e-3, 1.0, 0.01, "recipe segformer_b0_camvid"),
    "ocrnet": Rates("adamw", 1e-3, 1.0, 0.01, "recipe ocrnet_camvid"),
    "segmenter": Rates("adamw", 1e-3, 1.0, 0.05, "recipe segmenter_mask_camvid"),
    "setr": Rates("adamw", 1e-3, 1.0, 0.05, "recipe setr_mla_camvid"),
}
PRETRAINED_RATES = {
    "segformer": Rates("adamw", 6e-5, 10.0, 0.01, "arXiv 2105.15203, Section 4.1"),
    "ocrnet": Rates("sgd", 2e-2, 1.0, 1e-4, "arXiv 1909.11065, Section 4.1"),
    "segmenter": Rates("sgd", 1e-3, 1.0, 0.0, "arXiv 2105.05633, Section 4.1"),
    "setr": Rates("sgd", 1e-3, 10.0, 0.0, "arXiv 2012.15840, Section 4.1"),
}
SMALLEST_SIZES = {"segformer": "b0", "ocrnet": "hrnet_w18_small", "segmenter": "tiny", "setr": "base"}
PUBLISHED_STEPS = 160_000  # over which the rates for pre-trained weights were found


@dataclass
class Automatic:
    """What was decided, and the clock of the run.

    Attributes:
        decisions: in the order in which they were taken, one for each argument.
        given: names of arguments that were not to be decided.
        started: `time.perf_counter()` when the command began.
        seconds: from then to the end of the run; None without a budget.
        num_processes: that train together.
        facts: of the data.
        evaluation_seconds: estimated, of one evaluation.
    """

    decisions: list[Decision] = field(default_factory=list)
    given: frozenset[str] = frozenset()
    started: float = field(default_factory=time.perf_counter)
    seconds: float | None = None
    num_processes: int = 1
    facts: DataFacts | None = None
    evaluation_seconds: float = 0.0

    def take(self, arguments: Arguments, decisions: list[Decision]) -> list[Decision]:
        """Puts into the arguments what was not given, and returns these; a later decision replaces an earlier one."""
        taken = [decision for decision in decisions if decision.name not in self.given]
        for decision in taken:
            setattr(arguments, decision.name, decision.value)
            self.decisions = [other for other in self.decisions if other.name != decision.name] + [decision]
        return taken

    def is_adjustable(self, arguments: Arguments, step: int, total: int) -> bool:
        """Whether the number of steps may change after so many of them, with the rates so far being as they were."""
        is_constant = arguments.lr_scheduler_type == "constant"
        is_level = arguments.lr_scheduler_type == "wsd" and step <= (1 - arguments.lr_decay_share) * total
        return self.seconds is not None and not self.given & LENGTH_ARGUMENTS and (is_constant or is_level)

    @property
    def reasons(self) -> dict[str, str]:
        """The reason for each argument that was decided."""
        return {decision.name: decision.reason for decision in self.decisions}

    def elapsed(self) -> float:
        """Seconds since the command began."""
        return time.perf_counter() - self.started


# ---------------------------------------------------------------------------------------------------------------- time


def seconds_of(text: str) -> float:
    """The seconds in "90s", "30m", "1h30m" or "2d".

    Raises:
        ValueError: if it is something else, or nothing.
    """
    match = re.fullmatch(r"(?:(\d+\.?\d*)d)?(?:(\d+\.?\d*)h)?(?:(\d+\.?\d*)m)?(?:(\d+\.?\d*)s)?", text.strip().lower())
    seconds = sum(float(part or 0) * unit for part, unit in zip(match.groups(), (86400, 3600, 60, 1))) if match else 0
    if seconds <= 0:
        raise ValueError(f"time_budget is {text!r}; give days, hours, minutes or seconds, such as 30m, 1h30m or 90s")
    return seconds


def in_words(seconds: float) -> str:
    """12 s, 5.0 minutes or 3.2 hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


# ----------------------------------------------------------------------------------------------------------- the start


def weights_in_reach(architecture: str, size: str) -> tuple[str | None, str]:
    """Name of pre-trained weights for the backbone that are cached or on the Hub, which is asked once; and a reason."""
    name = BACKBONES.get((architecture, size))
    if name is None:
        return None, f"no pre-trained backbone is listed for {architecture} {size}; name one with backbone_weights"
    for file in ("model.safetensors", "pytorch_model.bin"):
        if isinstance(try_to_load_from_cache(name, file), str):
            return name, f"{name} is in the cache (ImageNet; mind its licence)"
    if constants.HF_HUB_OFFLINE:
        return None, f"{name} is not in the cache, and HF_HUB_OFFLINE is set"
    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except HUB_ERRORS as error:
        return None, f"{name} is not in the cache, and the Hub did not answer ({type(error).__name__})"
    return name, f"{name} is on the Hub (ImageNet; mind its licence)"


def decide_start(arguments: Arguments, seconds: float | None, on_cpu: bool, num_channels: int) -> list[Decision]:
    """Architecture, size and the weights to start from."""
    if arguments.model_name_or_path or arguments.config_name:
        return []
    decisions = []
    architecture, size = arguments.architecture, arguments.size
    if architecture is None:
        architecture = "segformer"
        reason = "learns most in little time of the four, from random weights too (recipes *_camvid: 49 against 45 %)"
        decisions.append(Decision("architecture", architecture, reason))
    if size is None and (on_cpu or architecture == "segformer"):
        size, reason = SMALLEST_SIZES[architecture], "a CPU can show it the most images"
        if not on_cpu:
            hours = math.inf if seconds is None else seconds / 3600
            size = "b0" if hours < 1 else "b1" if hours < 3 else "b2"
            reason = "what a GPU can show enough images to" + (f" in {in_words(seconds)}" if seconds else "")
        decisions.append(Decision("size", size, reason))
    if arguments.backbone_weights is None:
        name, reason = None, f"those in reach see 3 channels, not {num_channels}"
        if num_channels == 3:
            name, reason = weights_in_reach(architecture, size or "")
        decisions.append(Decision("backbone_weights", name, reason if name else f"random weights: {reason}"))
    return decisions


# ------------------------------------------------------------------------------------------------------------ the data


def decide_images(facts: DataFacts, megapixels: float, architecture: str) -> list[Decision]:
    """Working size, crop, range of scales and protocol of evaluation.

    Args:
        megapixels: of crops that there is time for.
    """
    decisions = []
    scale = working_scale(facts, megapixels)
    height, width = facts.height * scale, facts.width * scale
    if scale < 1:
        short = _multiple(min(height, width), 32)
        scale = short / min(facts.height, facts.width)
        height, width = facts.height * scale, facts.width * scale
        name, side = facts.smallest_object()
        reason = (
            f"images of {facts.width}x{facts.height} would be seen {megapixels / facts.megapixels:.0f} times in this "
            f"time, at this size {megapixels / facts.megapixels / scale**2:.0f} times; the smallest objects ({name}) "
            f"keep {side * scale:.0f} of their {side:.0f} pixels"
        )
        longest = 32 * math.ceil(2 * short * max(facts.largest) / min(facts.largest) / 32)  # no image reaches it
        decisions.append(Decision("image_size", [short, longest], reason))
    crop = [_multiple(min(512, max(128, 2 / 3 * side)), 32) for side in (height, width)]
    crop = [min(part, math.ceil(side / 32) * 32) for part, side in zip(crop, (height, width))]
    reason = f"two thirds of the median image, {width:.0f}x{height:.0f}: most of what surrounds an object, in less time"
    decisions.append(Decision("crop_size", crop, reason))
    decisions.append(Decision("scale_range", [0.5, 1.5], "objects at distances that the images do not show"))
    if architecture in ("setr", "segmenter") and (crop[0] < height or crop[1] < width):
        reason = f"{architecture} learns its positions in crops of this size"
        decisions.append(Decision("eval_mode", "slide", reason))
    return decisions


def _multiple(value: float, step: int) -> int:
    return max(step, round(value / step) * step)


def working_scale(facts: DataFacts, megapixels: float, views: int = 5000, object_side: float = 6.0) -> float:
    """The factor, at most 1, at which the pixels of the time are those of so many images.

    Measured with SegFormer-B0 from random weights on CamVid, 100 megapixels: mean IoU 30.5 % at half the size, 26.0 %
    at the images' own, with as many pixels in both.

    Args:
        megapixels: of crops that there is time for.
        views: of whole images.
        object_side: pixels that the objects of the class with the smallest ones should keep, if it is a matter of a
            fifth.
    """
    wanted = math.sqrt(megapixels / views / facts.megapixels)
    for_objects = object_side / facts.smallest_object()[1]
    for_context = SMALLEST_SHORT_EDGE / min(facts.height, facts.width)
    return min(1.0, max(wanted, min(for_objects, 1.2 * wanted), for_context))


def decide_normalization(facts: DataFacts, has_weights: bool) -> list[Decision]:
    """Mean and standard deviation of the images, where those of the initial weights cannot be meant."""
    if facts.num_channels == 3 and (has_weights or not facts.is_deep):
        return []
    reason = f"measured: {facts.num_channels} channels{' of more than 8 bits' * facts.is_deep}"
    mean = [round(min(1.0, max(0.0, value)), 4) for value in facts.mean]
    std = [round(min(1.0, max(0.001, value)), 4) for value in facts.std]
    return [Decision("image_mean", mean, reason), Decision("image_std", std, reason)]


def decide_loss(facts: DataFacts) -> list[Decision]:
    """The weights of the classes in the loss, from how unevenly the pixels are spread over them."""
    shares = facts.class_shares
    present = [share for share in shares if share > 0]
    if min(present, default=1.0) * len(present) > 0.5:
        return []  # about equally frequent
    weights = [max(share, RAREST) ** -0.5 for share in shares]
    mean = sum(weight * share for weight, share in zip(weights, shares, strict=True))
    rarest = shares.index(min(present))
    reason = (
        f"{facts.class_names[rarest]} has {shares[rarest]:.2%} of the pixels: roots of the inverse shares, between no "
        "weights, with which rare classes are not found in little time, and equal sums, with which they are overdone"
    )
    return [Decision("class_weights", [f"{weight / mean:.3g}" for weight in weights], reason)]


ONE_SIDED = re.compile(r"\b(left|right|text|letter|digit|number ?plate|liver|heart|stomach|spleen|aorta)\b", re.I)


def decide_augmentation(facts: DataFacts) -> list[Decision]:
    """Mirroring, by the names of the classes, and changes of colour, by the channels."""
    decisions = []
    names = facts.class_names
    pairs = flip_permutation(dict(enumerate(names)))
    sided = [
        name for index, name in enumerate(names) if ONE_SIDED.search(name) and (not pairs or pairs[index] == index)
    ]
    if sided:
        reason = f"{', '.join(sided[:3])} would be wrong in a mirror"
        decisions.append(Decision("flip", False, reason))
    if facts.num_channels != 3:
        decisions.append(
            Decision("color_changes", False, f"{facts.num_channels} channels are measurements, not colours")
        )
    return decisions


# ----------------------------------------------------------------------------------------------- optimizer and machine


def decide_batch(
    crop: list[int], num_images: int, megapixels: float = math.inf, num_processes: int = 1
) -> list[Decision]:
    """Images of a step: as many in each process.

    Args:
        megapixels: of crops that each process has time for.
    """
    area = crop[0] * crop[-1] / 1e6
    affordable = megapixels / WANTED_STEPS / area
    batch = 2 ** int(math.log2(max(4.0, min(16.0, affordable, num_images))))
    reason = f"between 4 and 16, so many that there is time for {WANTED_STEPS} steps"
    decisions = [Decision("per_device_train_batch_size", batch, reason)]
    return [Decision("total_batch_size", batch * num_processes, reason), *decisions]


def decide_optimizer(arguments: Arguments, architecture: str, steps: int) -> list[Decision]:
    """Optimizer, rates, and their schedule, for a run of about so many steps."""
    is_pretrained = bool(arguments.model_name_or_path or arguments.backbone_weights)
    table = PRETRAINED_RATES if is_pretrained else RANDOM_RATES
    rates = table.get(architecture, table["segformer"])
    rate, why = rates.learning_rate, f"{rates.source}, {'pre-trained' if is_pretrained else 'random'} weights"
    if is_pretrained and rates.optimizer == "adamw" and steps < PUBLISHED_STEPS:
        factor = min(8.0, (PUBLISHED_STEPS / steps) ** 0.4)
        rate = float(f"{rate * factor:.2g}")
        why += f"; {factor:.1f} times as much, because {steps} steps have to do what {PUBLISHED_STEPS} did there"
    head, head_why = rates.head_lr_multiplier, rates.source
    highest = RANDOM_RATES.get(architecture, RANDOM_RATES["segformer"])
    if head * rate > highest.learning_rate > rate and rates.optimizer == highest.optimizer:
        head, head_why = (
            round(highest.learning_rate / rate, 2),
            f"for heads, which begin with random weights: {highest.source}",
        )
    warmup = max(1, min(1500, round(0.05 * steps)))
    return [
        Decision("optimizer", rates.optimizer, rates.source),
        Decision("learning_rate", rate, why),
        Decision("head_lr_multiplier", head, head_why),
        Decision("weight_decay", rates.weight_decay, rates.source),
        Decision("max_grad_norm", 1.0, "keeps the first steps from random weights, and rare bad batches, harmless"),
        Decision("lr_scheduler_type", "wsd", "the rate does not depend on the number of steps until it falls"),
        Decision("lr_decay_share", 0.75, "a long fall to 0, which also averages: no moving average is needed"),
        Decision("num_warmup_steps", warmup, "a twentieth of the steps"),
    ]


class Length(NamedTuple):
    """Steps of a run and of its evaluations."""

    total: int
    evaluation: int
    first_evaluation: int


def plan_length(seconds_left: float, step_seconds: float, evaluation_seconds: float, elapsed: float) -> Length:
    """How many steps fit, with evaluations and checkpoints between them, and as much as three more for the report.

    Args:
        seconds_left: of the budget, for all that follows.
        evaluation_seconds: with the checkpoint after it.
        elapsed: of the budget, before the first step.
    """
    count = max(2, min(10, int(EVALUATION_SHARE * seconds_left / max(evaluation_seconds, 1e-3))))
    for_steps = max(seconds_left - (count + REPORT_EVALUATIONS) * evaluation_seconds, 0.5 * seconds_left)
    total = max(10, int(for_steps / step_seconds))
    evaluation = math.ceil(total / count)
    until = min(FIRST_EVALUATION_SECONDS - elapsed, FIRST_EVALUATION_SHARE * for_steps) - evaluation_seconds
    first = int(max(until, 0.05 * for_steps) / step_seconds)
    return Length(total, evaluation, max(1, min(first, evaluation)))


def steps_that_fit(
    step: int, seconds_left: float, step_seconds: float, evaluation_seconds: float, evaluation_steps: int
) -> int:
    """The total number of steps, from `step` on, so that they and the evaluations between them fill the seconds.

    Args:
        seconds_left: after the evaluation at `step`; what the report takes is kept free.
    """
    a_step = step_seconds + evaluation_seconds / evaluation_steps
    return step + max(1, int((seconds_left - REPORT_EVALUATIONS * evaluation_seconds) / a_step))


def deserved_views(facts: DataFacts, is_pretrained: bool) -> int:
    """Crops that a run without a time budget sees: many times each image, within bounds."""
    passes = 40 if is_pretrained else 120
    return max(8_000, min(640_000, passes * facts.num_images))


def decide_evaluation(facts: DataFacts, arguments: Arguments) -> list[Decision]:
    """How images are held in memory, and which model is the final one."""
    scale = min(1.0, min(arguments.image_size) / min(facts.height, facts.width)) if arguments.image_size else 1.0
    largest = facts.largest[0] * facts.largest[1] / 1e6 * scale**2
    decisions = [Decision("load_best_model_at_end", True, "the best evaluation's model is the final one")]
    if (images := max(1, min(8, int(2 / largest)))) < 8:
        reason = f"images of {largest:.1f} megapixels: so many at a time do not fill the memory"
        decisions.append(Decision("per_device_eval_batch_size", images, reason))
    needed = 1.1 * facts.num_images * facts.megapixels * 1e6 * (facts.num_channels * (4 if facts.is_deep else 1) + 1)
    if needed > 2**30 and needed < 0.4e9 * plan.free_memory():
        gigabytes = math.ceil(10 * needed / 2**30) / 10
        decisions.append(Decision("cache_gigabytes", gigabytes, "all decoded images, each read from disk once only"))
    return decisions


def decide_held_out(num_images: int) -> list[Decision]:
    """The share of the images that validates, if there is no validation split."""
    share = round(min(0.15, 300 / num_images), 4) if num_images >= 40 else 0.25
    reason = f"of {num_images} images: enough to tell models apart, the others to learn from"
    alike = "frames of a video and copies in both parts would make scores that are too good"
    return [Decision("train_val_split", share, reason), Decision("keep_near_duplicates_together", True, alike)]


# --------------------------------------------------------------------------------------------------------- the machine


class Speed(NamedTuple):
    """Of a step with one of the two precisions, measured."""

    precision: str
    seconds: float
    megapixels: float  # a second
    memory: float  # 1e9 bytes


def measure_speeds(arguments: Arguments, labels: Labels) -> list[Speed]:
    """Steps of the micro-batch in each precision that comes into question, the fastest first; empty if none fits."""
    precisions = [arguments.mixed_precision] if arguments.mixed_precision else ["no", "bf16"]
    crop = arguments.crop_size
    pixels = arguments.per_device_train_batch_size * crop[0] * crop[-1] / 1e6
    speeds = []
    with _single_process():
        for precision in precisions:
            if step := plan.measure_apart(replace(arguments, mixed_precision=precision, num_warmup_steps=0), labels):
                seconds = step.seconds + step.update_seconds
                speeds.append(Speed(precision, seconds, pixels / seconds, step.memory))
    return sorted(speeds, key=lambda speed: speed.seconds)


@contextmanager
def _single_process() -> Iterator[None]:
    """Processes that begin inside do not look for those that a launcher started with this one."""
    names = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}
    names |= {name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_", "TORCHELASTIC_"))}
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def decide_precision(speeds: list[Speed]) -> list[Decision]:
    """The faster of two precisions, float32 unless the other one is worth it."""
    fastest = speeds[0]
    if len(speeds) == 1:
        return []
    other = speeds[1]
    gain = fastest.megapixels / other.megapixels
    if fastest.precision == "no" or gain < 1.05:
        plain = fastest if fastest.precision == "no" else other
        reason = f"float32: bf16 is not faster here ({', '.join(f'{s.precision} {s.seconds:.2f} s' for s in speeds)})"
        return [Decision("mixed_precision", plain.precision, reason)]
    reason = f"measured: {fastest.seconds:.2f} s instead of {other.seconds:.2f} s a step, {gain:.2f} times as fast"
    return [Decision("mixed_precision", fastest.precision, reason)]


# ----------------------------------------------------------------------------------------------------------- the whole


def configure(
    arguments: Arguments,
    given: Collection[str] = (),
    *,
    started: float | None = None,
    num_processes: int = 1,
    show: Callable[[str], None] = print,
) -> Automatic:
    """Completes the arguments, in place, and says each decision in a line.

    Args:
        given: names of arguments that stay as they are.
        started: `time.perf_counter()` when the clock of the budget began; None is now.
        num_processes: that train together, with a device like this one each.
        show: gets the lines.

    Raises:
        ValueError, OSError: as `load_data`, and for a time budget that is no time.
    """
    automatic = Automatic(given=frozenset(given), num_processes=num_processes)
    automatic.started = time.perf_counter() if started is None else started
    automatic.seconds = seconds_of(arguments.time_budget) if arguments.time_budget else None
    arguments.time_budget = None  # from here on the number of steps says it

    def settle(decisions: list[Decision]) -> None:
        for decision in automatic.take(arguments, decisions):
            show(str(decision))

    labels = _settle_data(arguments, automatic, settle)
    facts = automatic.facts
    on_cpu = not torch.accelerator.is_available()
    settle(decide_start(arguments, automatic.seconds, on_cpu, facts.num_channels))
    is_pretrained = bool(arguments.model_name_or_path or arguments.backbone_weights)
    settle(decide_normalization(facts, is_pretrained))
    settle(decide_loss(facts))
    settle(decide_augmentation(facts))
    speed = _settle_precision(arguments, automatic, labels, settle)  # of one process
    views = deserved_views(facts, is_pretrained)
    megapixels = views * CPU_CROP_MEGAPIXELS
    if automatic.seconds:
        megapixels = (
            max(1.0, (1 - EVALUATION_SHARE) * automatic.seconds - automatic.elapsed())
            * speed.megapixels
            * num_processes
        )
    architecture = architecture_name(arguments)
    if not arguments.image_size:
        settle(decide_images(facts, megapixels, architecture))
    if architecture in ("setr", "segmenter") and not arguments.model_name_or_path:
        settle(decide_positions(arguments))
    if not automatic.given & BATCH_ARGUMENTS:
        settle(decide_batch(arguments.crop_size, facts.num_images, megapixels / num_processes, num_processes))
        settle(fit_memory(arguments, speed, labels, show))
    settle(decide_evaluation(facts, arguments))
    steps = _settle_length(arguments, automatic, speed, views, settle)
    settle(decide_optimizer(arguments, architecture, steps))
    return automatic


def architecture_name(arguments: Arguments) -> str:
    """The key of `ARCHITECTURES`, or what another library calls it."""
    start = arguments.config_name or arguments.model_name_or_path
    if not start:
        return arguments.architecture or "segformer"
    token = arguments.token or arguments.hub_token
    config, _ = PreTrainedConfig.get_config_dict(start, cache_dir=arguments.cache_dir, token=token)
    return config.get("model_type", "").removeprefix("segtx_")


def decide_positions(arguments: Arguments) -> list[Decision]:
    """The position table of a ViT, for the crops that it learns from."""
    overrides = config_overrides(arguments)
    if "image_size" in overrides:
        return []
    text = json.dumps({**overrides, "image_size": [arguments.crop_size[0], arguments.crop_size[-1]]})
    return [Decision("config_overrides", text, "a table of positions of the crop's size, each of them learned")]


def fit_memory(arguments: Arguments, speed: Speed, labels: Labels, show: Callable[[str], None]) -> list[Decision]:
    """Micro-batch, accumulation and checkpointing, where the images of a step do not fit into the memory together."""
    free = plan.free_memory()
    area = arguments.crop_size[0] * arguments.crop_size[-1] / 1e6
    images = arguments.per_device_train_batch_size
    if speed.memory * max(1.0, images * area / (speed.megapixels * speed.seconds)) < 0.8 * free:
        return []
    with _single_process():
        chosen, step = plan.propose(arguments, images, plan.Measurements(labels, 0.9 * free, show))
    reason = f"measured: so many images take {step.memory:.1f} of {free:.1f} GB"
    decisions = [Decision("per_device_train_batch_size", chosen.per_device_train_batch_size, reason)]
    for name in ("gradient_checkpointing", "crop_size", "mixed_precision"):
        if getattr(chosen, name) != getattr(arguments, name):
            decisions.append(Decision(name, getattr(chosen, name), reason))
    return decisions


def _settle_data(arguments: Arguments, automatic: Automatic, settle: Callable) -> Labels:
    """Channels and the share held out, then the facts of the checked data; returns their labels."""
    if not (arguments.train_dir or arguments.dataset_name):
        raise ValueError("there is nothing to decide for the embedded scenes; give train_dir or dataset_name")
    is_said = arguments.num_channels or arguments.model_name_or_path or arguments.config_name
    train, validation, _ = setup.read_data(arguments, check=False)
    if not is_said and "num_channels" not in config_overrides(arguments) and (channels := file_channels(train)) != 3:
        settle([Decision("num_channels", channels, "the images have so many")])
    if train.records is validation.records:
        settle(decide_held_out(len(train) + len(validation)))
    train, validation, labels = setup.read_data(arguments, check=True)
    automatic.facts = measure_facts(train, len(validation))
    return labels


def _settle_precision(arguments: Arguments, automatic: Automatic, labels: Labels, settle: Callable) -> Speed:
    """Measures steps in both precisions; returns the speed of the one that was chosen.

    The crops are such as most images have room for: the pixels of a step decide its time, hardly their shape.
    """
    trial, facts = replace(arguments, max_grad_norm=1.0, image_size=[]), automatic.facts
    if "crop_size" not in automatic.given:
        trial.crop_size = [min(256, _multiple(side, 32)) for side in (facts.height, facts.width)]
    if not automatic.given & BATCH_ARGUMENTS:
        trial.per_device_train_batch_size = decide_batch(trial.crop_size, facts.num_images, TRIAL_MEGAPIXELS)[0].value
    speeds = measure_speeds(trial, labels)
    if not speeds:
        raise ValueError(
            f"not even {trial.per_device_train_batch_size} crops of {trial.crop_size} pixels fit into memory; choose a "
            "smaller `size`"
        )
    settle(decide_precision(speeds))
    return next((speed for speed in speeds if speed.precision == arguments.mixed_precision), speeds[0])


def _settle_length(arguments: Arguments, automatic: Automatic, speed: Speed, views: int, settle: Callable) -> int:
    """Steps and evaluations; returns the number of steps."""
    facts, batch = automatic.facts, arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    batch = arguments.total_batch_size or batch * automatic.num_processes
    crop = arguments.crop_size[0] * arguments.crop_size[-1] / 1e6
    megapixels = speed.megapixels * automatic.num_processes  # a second
    step_seconds = batch * crop / megapixels
    scale = min(1.0, min(arguments.image_size) / min(facts.height, facts.width)) if arguments.image_size else 1.0
    shown = facts.num_validation_images * facts.megapixels
    automatic.evaluation_seconds = 1.0 + FORWARD_SHARE * shown * scale**2 / megapixels + 0.02 * shown
    if automatic.given & LENGTH_ARGUMENTS:
        return arguments.max_train_steps or math.ceil(arguments.num_train_epochs * facts.num_images / batch)
    if automatic.seconds is None:
        total = math.ceil(views / batch)
        evaluation_seconds = automatic.evaluation_seconds * 10
        reason = (
            f"each image {views / facts.num_images:.0f} times, which takes "
            f"{in_words(total * step_seconds + evaluation_seconds)}; a time budget would change it"
        )
        first = max(1, min(math.ceil(total / 10), int((FIRST_EVALUATION_SECONDS - automatic.elapsed()) / step_seconds)))
        length = Length(total, math.ceil(total / 10), first)
    else:
        left = USED_SHARE * automatic.seconds - automatic.elapsed() - START_SECONDS
        length = plan_length(left, step_seconds, automatic.evaluation_seconds, automatic.elapsed())
        reason = (
            f"{step_seconds:.2f} s each fill what is left of {in_words(automatic.seconds)}; set anew once, at the "
            "first evaluation"
        )
    settle([Decision("max_train_steps", length.total, reason)])
    reason = f"about {in_words(automatic.evaluation_seconds)} each"
    settle([Decision("evaluation_steps", length.evaluation, reason)])
    settle([Decision("first_evaluation_step", length.first_evaluation, "early, so that a hopeless run is seen")])
    return length.total


def settled_steps(
    automatic: Automatic, arguments: Arguments, step: int, step_seconds: float, evaluation_seconds: float
) -> list[Decision]:
    """The number of steps anew, from what was measured up to the evaluation at `step`.

    The rate of the steps so far stays what it was: it does not begin to fall before `step`.
    """
    left = USED_SHARE * automatic.seconds - automatic.elapsed()
    total = steps_that_fit(step, left, step_seconds, evaluation_seconds, arguments.evaluation_steps)
    reason = (
        f"{step_seconds:.2f} s each and {evaluation_seconds:.1f} s an evaluation, measured up to step {step}, fill "
        f"{in_words(automatic.seconds)}"
    )
    decisions = [Decision("max_train_steps", total, reason)]
    share = min(arguments.lr_decay_share, math.floor(1000 * (1 - step / total)) / 1000)
    if share != arguments.lr_decay_share:
        decisions.append(Decision("lr_decay_share", share, "the rate falls from the first evaluation on"))
    return decisions


def configure_everywhere(
    arguments: Arguments,
    given: Collection[str] | None = None,
    *,
    started: float | None = None,
    show: Callable[[str], None] = print,
) -> Automatic:
    """`configure` in the main process; all processes get what it decided.

    Args:
        given: None takes whatever differs from its default.
        started, show: as in `configure`.
    """
    if given is None:
        default, said = vars(Arguments()), vars(arguments)
        given = {option.name for option in fields(Arguments) if said[option.name] != default[option.name]}

    def decide() -> tuple[dict, Automatic]:
        automatic = configure(arguments, given, started=started, num_processes=process.num_processes, show=show)
        return vars(arguments), automatic

    process = PartialState(cpu=not torch.accelerator.is_available())
    values, automatic = everywhere(decide, only_main=True)
    for name, value in values.items():
        setattr(arguments, name, value)
    return automatic


def frozen_decisions(recipe: Path, arguments: Arguments, given: Collection[str] = ()) -> Automatic | None:
    """What was decided about a run, from the comments in its recipe; None if nothing was.

    Args:
        given: names of arguments that are not from this recipe.
    """
    names = {option.name for option in fields(Arguments)} - set(given)
    found = re.findall(r"^# (\w+): (.+)$", recipe.read_text(encoding="utf-8"), re.M)
    decisions = [Decision(name, vars(arguments)[name], reason) for name, reason in found if name in names]
    return Automatic(decisions) if decisions else None
