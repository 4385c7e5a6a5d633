"""The rules of a run that configures itself: measured facts -> decisions, each with its reason. Nothing is read here.

Each `decide_...` is a pure function. The reasons stand in the run's recipe, its card and its report.
"""

import json
import math
import re
from typing import NamedTuple

from ..architectures import ARCHITECTURES, Rates
from ..data.labels import flip_permutation
from .arguments import Arguments, config_overrides
from .data_facts import DataFacts


FIRST_EVALUATION_SECONDS = 110  # after the start of the command, so that a hopeless run is seen within two minutes
FIRST_EVALUATION_SHARE = 0.2  # of the steps, if that is earlier
EVALUATION_SHARE = 0.12  # of the time, for all evaluations together
REPORT_EVALUATIONS = 3.5  # what the last evaluation, the best model's and the report take, in evaluations
# From random weights on CamVid, with as many pixels in both: 4 images a step and 579 steps gave ten points more of mean
# IoU than 8 images and 289 steps, about four of them from class weights.
WANTED_STEPS = 3000
VIEWS = 8000  # of whole images, from random weights; see `working_scale`
MANY_PASSES = 60  # through the training images, from which on they could be learned by heart
RAREST = 1e-4  # of the pixels, for the weight of a class
SMALLEST_SHORT_EDGE = 192  # pixels that an image is shown at, at least: 6 cells of the last stage
ONE_SIDED = re.compile(r"\b(left|right|text|letter|digit|number ?plate|liver|heart|stomach|spleen|aorta)\b", re.I)


class Decision(NamedTuple):
    """What an argument is set to, and why."""

    name: str
    value: object
    reason: str

    def __str__(self) -> str:
        value = " ".join(map(str, self.value)) if isinstance(self.value, list) else self.value
        return f"{self.name} {value}: {self.reason}"


def rates_of(architecture: str, is_pretrained: bool) -> Rates | None:
    """How it is trained; None if nobody has written it down."""
    row = ARCHITECTURES.get(architecture)
    return (row.pretrained_rates if is_pretrained else row.random_rates) if row else None


def has_position_table(architecture: str) -> bool:
    """Whether it learns positions for images of one size; False for those of other libraries."""
    return architecture in ARCHITECTURES and ARCHITECTURES[architecture].has_position_table


# ----------------------------------------------------------------------------------------------------------------- time


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
    passes, least = (40, 8_000) if is_pretrained else (120, 16_000)
    return max(least, min(640_000, passes * facts.num_images))


# ------------------------------------------------------------------------------------------------------------ the start


def decide_start(arguments: Arguments, seconds: float | None, on_cpu: bool) -> list[Decision]:
    """Architecture and size, unless a checkpoint brings them; a backbone of another library has no size."""
    if arguments.model_name_or_path or arguments.config_name:
        return []
    decisions = []
    architecture, size = arguments.architecture, arguments.size
    if architecture is None:
        architecture = "segformer"
        reason = "learns most in little time of the four, from random weights too (recipes *_camvid: 49 against 45 %)"
        decisions.append(Decision("architecture", architecture, reason))
    if size is None and not arguments.backbone and (on_cpu or architecture == "segformer"):
        size, reason = ARCHITECTURES[architecture].sizes[0], "a CPU can show it the most images"
        if not on_cpu:
            hours = math.inf if seconds is None else seconds / 3600
            size = "b0" if hours < 1 else "b1" if hours < 3 else "b2"
            reason = "what a GPU can show enough images to" + (f" in {in_words(seconds)}" if seconds else "")
        decisions.append(Decision("size", size, reason))
    return decisions


# ------------------------------------------------------------------------------------------------------------- the data


def decide_held_out(num_images: int) -> list[Decision]:
    """The share of the images that validates, if there is no validation split."""
    share = round(min(0.15, 300 / num_images), 4) if num_images >= 40 else 0.25
    reason = f"of {num_images} images: enough to tell models apart, the others to learn from"
    alike = "frames of a video and copies in both parts would make scores that are too good"
    return [Decision("train_val_split", share, reason), Decision("keep_near_duplicates_together", True, alike)]


def decide_images(
    facts: DataFacts, megapixels: float, architecture: str, is_pretrained: bool = False
) -> list[Decision]:
    """Working size, crop, range of scales and protocol of evaluation.

    Args:
        megapixels: of crops that there is time for.
        is_pretrained: then a quarter of the images are enough.
    """
    decisions = []
    scale = working_scale(facts, megapixels, VIEWS // 4 if is_pretrained else VIEWS)
    height, width = facts.height * scale, facts.width * scale
    if scale < 1:
        short = multiple_of(min(height, width), 32)
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
    crop = [multiple_of(min(512, max(128, 2 / 3 * side)), 32) for side in (height, width)]
    crop = [min(part, math.ceil(side / 32) * 32) for part, side in zip(crop, (height, width))]
    reason = f"two thirds of the median image, {width:.0f}x{height:.0f}: most of what surrounds an object, in less time"
    decisions.append(Decision("crop_size", crop, reason))
    decisions.append(Decision("scale_range", [0.5, 1.5], "objects at distances that the images do not show"))
    if has_position_table(architecture) and (crop[0] < height or crop[1] < width):
        reason = f"{architecture} learns its positions in crops of this size"
        decisions.append(Decision("eval_mode", "slide", reason))
    return decisions


def multiple_of(value: float, step: int) -> int:
    """The nearest multiple, at least one step."""
    return max(step, round(value / step) * step)


def working_scale(facts: DataFacts, megapixels: float, views: int, object_side: float = 6.0) -> float:
    """The factor, at most 1, at which the pixels of the time are those of so many images.

    Measured with SegFormer-B0 from random weights on CamVid, 100 megapixels: mean IoU 40.7 % at half the size, 29.9 %
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


def shown_scale(facts: DataFacts, arguments: Arguments) -> float:
    """Size at which a median image is shown to the model over its own."""
    return min(1.0, min(arguments.image_size) / min(facts.height, facts.width)) if arguments.image_size else 1.0


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


def decide_augmentation(facts: DataFacts, passes: float) -> list[Decision]:
    """Mirroring, by the names of the classes, and changes of colour, by the channels and the time.

    Args:
        passes: how often each image will be seen.
    """
    decisions = []
    names = facts.class_names
    pairs = flip_permutation(dict(enumerate(names)))
    sided = [
        name for index, name in enumerate(names) if ONE_SIDED.search(name) and (not pairs or pairs[index] == index)
    ]
    if sided:
        reason = f"{', '.join(sided[:3])} would be wrong in a mirror"
        decisions.append(Decision("flip_probability", 0.0, reason))
    if facts.num_channels != 3:
        reason = f"{facts.num_channels} channels are measurements, not colours"
        decisions.append(Decision("photometric", "none", reason))
    elif passes < MANY_PASSES / 2:
        reason = f"each image is seen {passes:.0f} times: too seldom to be learned by heart, and changes slow learning"
        decisions.append(Decision("photometric", "none", reason))
    return decisions


def decide_dropout(arguments: Arguments, architecture: str, passes: float) -> list[Decision]:
    """No stochastic depth and no dropout before the classifier, unless images are seen often.

    Measured with SegFormer-B0 from random weights on CamVid, 6 passes: mean IoU 46.2 % without these and without
    changes of colour, 40.7 % with all of them.
    """
    overrides = config_overrides(arguments)
    dropouts = ARCHITECTURES[architecture].dropouts if architecture in ARCHITECTURES else ()
    wanted = {name: 0.0 for name in dropouts if name not in overrides}
    if passes >= MANY_PASSES or arguments.model_name_or_path or not wanted:
        return []
    reason = f"each image is seen {passes:.0f} times: too seldom for dropout to help"
    return [Decision("config_overrides", json.dumps({**wanted, **overrides}), reason)]


def decide_evaluation(facts: DataFacts, arguments: Arguments, free_memory: float) -> list[Decision]:
    """How images are held in memory, of which `free_memory` * 1e9 bytes are free, and which model is the final one."""
    scale = shown_scale(facts, arguments)
    largest = facts.largest[0] * facts.largest[1] / 1e6 * scale**2
    decisions = [Decision("load_best_model_at_end", True, "the best evaluation's model is the final one")]
    if (images := max(1, min(8, int(2 / largest)))) < 8:
        reason = f"images of {largest:.1f} megapixels: so many at a time do not fill the memory"
        decisions.append(Decision("per_device_eval_batch_size", images, reason))
    needed = 1.1 * facts.num_images * facts.megapixels * 1e6 * (facts.num_channels * (4 if facts.is_deep else 1) + 1)
    if needed > 2**30 and needed < 0.4e9 * free_memory:
        gigabytes = math.ceil(10 * needed / 2**30) / 10
        decisions.append(Decision("cache_gigabytes", gigabytes, "all decoded images, each read from disk once only"))
    return decisions


# ------------------------------------------------------------------------------------------------ optimizer and machine


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


def decide_optimizer(rates: Rates, steps: int, random_rates: Rates | None = None) -> list[Decision]:
    """Optimizer, rates, and their schedule, for a run of about so many steps.

    Args:
        rates: for the weights that the run starts from.
        random_rates: for random weights, which heads begin with: they learn no faster than this.
    """
    rate, why = rates.learning_rate, rates.source
    if rates.steps and steps < rates.steps:
        factor = min(8.0, (rates.steps / steps) ** 0.4)
        rate = float(f"{rate * factor:.2g}")
        why += f"; {factor:.1f} times as much, because {steps} steps have to do what {rates.steps} did there"
    head, head_why = rates.head_lr_multiplier, rates.source
    if random_rates and random_rates.optimizer == rates.optimizer and head * rate > random_rates.learning_rate > rate:
        head = round(random_rates.learning_rate / rate, 2)
        head_why = f"for heads, which begin with random weights: {random_rates.source}"
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


def decide_positions(arguments: Arguments) -> list[Decision]:
    """The position table of a ViT, for the crops that it learns from."""
    overrides = config_overrides(arguments)
    if "image_size" in overrides:
        return []
    text = json.dumps({"image_size": [arguments.crop_size[0], arguments.crop_size[-1]], **overrides})
    return [Decision("config_overrides", text, "a table of positions of the crop's size, each of them learned")]


class Speed(NamedTuple):
    """Of a step with one of the two precisions, measured."""

    precision: str
    seconds: float
    megapixels: float  # a second
    memory: float  # 1e9 bytes


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
