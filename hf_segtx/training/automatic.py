"""A run that configures itself: from its data, the weights in reach, the machine and the time there is.

    arguments = Arguments(train_dir="data", time_budget="30m")
    automatic = configure(arguments, given={"train_dir"})   # completes the arguments, says each decision
    AutomaticRun(arguments, automatic=automatic).run()

What is among the given is left alone; the rules for the rest are in decisions.py. What was decided is frozen into the
run's `train.args`, a recipe like any other, so that resuming and a second run from the file are the same run. Only the
number of steps is settled later: it is set anew once, at the first evaluation, when the real speed is known. Until then
the learning rate does not depend on it: the schedule warms up, stays, and falls in the last part of the run ("wsd").
"""

import math
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, PartialState
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from transformers import PreTrainedConfig

from ..architectures import ARCHITECTURES, Rates
from ..data.labels import Labels
from ..hub import HUB_ERRORS
from . import decisions as rules
from . import plan, range_test, setup
from .arguments import Arguments, config_overrides
from .data_facts import DataFacts, file_channels, measure_facts
from .decisions import Decision, Length, Speed, in_words
from .machine import everywhere


USED_SHARE = 0.97  # of the budget: it is kept within 10 %, and a machine is rarely faster than measured
START_SECONDS = 5.0  # to build the model, and to write it at the end
FORWARD_SHARE = 0.45  # of a step's time, which an image of as many pixels takes in evaluation
TRIAL_MEGAPIXELS = 400.0  # of crops that the steps whose speed is measured are meant for
ROOMY = 6.0  # 1e9 bytes of free memory, of which a step of the trial fills a small part
HUB_SECONDS = 3.0  # to ask the Hub once
RANGE_TEST_SHARE = 0.05  # of the budget

BATCH_ARGUMENTS = frozenset(("total_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps"))
LENGTH_ARGUMENTS = frozenset(("max_train_steps", "num_train_epochs"))


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
    started: float = field(default_factory=lambda: time.perf_counter())  # so that a test can have its clock
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


def weights_in_reach(arguments: Arguments, num_channels: int) -> Decision:
    """Pre-trained weights for the backbone that are cached or on the Hub, which is asked once; else random ones."""

    def decision(name: str | None, reason: str) -> Decision:
        return Decision("backbone_weights", name, reason if name else f"random weights: {reason}")

    architecture, size = arguments.architecture, arguments.size
    name = ARCHITECTURES[architecture].pretrained_backbone if size else None
    if name is None:
        return decision(None, f"none are listed for {architecture} {size or ''}; name some with backbone_weights")
    name = name.format(size=size)
    if num_channels != 3:
        return decision(None, f"{name} sees 3 channels, not {num_channels}")
    for file in ("model.safetensors", "pytorch_model.bin"):
        if isinstance(try_to_load_from_cache(name, file), str):
            return decision(name, "in the cache (ImageNet; mind its licence)")
    if constants.HF_HUB_OFFLINE:
        return decision(None, f"{name} is not in the cache, and HF_HUB_OFFLINE is set")
    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except HUB_ERRORS as error:
        return decision(None, f"{name} is not in the cache, and the Hub did not answer ({type(error).__name__})")
    return decision(name, "on the Hub (ImageNet; mind its licence)")


def measure_speeds(arguments: Arguments, labels: Labels) -> list[Speed]:
    """Steps of the micro-batch in each precision that comes into question, the fastest first; empty if none fits."""
    precisions = [arguments.mixed_precision] if arguments.mixed_precision else ["no", "bf16"]
    crop = arguments.crop_size
    pixels = arguments.per_device_train_batch_size * crop[0] * crop[-1] / 1e6
    # A process of its own takes as long to start as several steps; it is for memory that could run out.
    is_alone = PartialState(cpu=not torch.accelerator.is_available()).num_processes == 1
    here = is_alone and not torch.accelerator.is_available() and plan.free_memory() > ROOMY
    speeds = []
    with _single_process():
        for precision in precisions:
            trial = replace(arguments, mixed_precision=precision, num_warmup_steps=0)
            AcceleratorState._reset_state()  # one precision a process, it says otherwise
            if step := (plan.measure if here else plan.measure_apart)(trial, labels):
                seconds = step.seconds + step.update_seconds
                speeds.append(Speed(precision, seconds, pixels / seconds, step.memory))
    AcceleratorState._reset_state()
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
    automatic.seconds = rules.seconds_of(arguments.time_budget) if arguments.time_budget else None
    arguments.time_budget = None  # from here on the number of steps says it

    def settle(decisions: list[Decision]) -> None:
        for decision in automatic.take(arguments, decisions):
            show(str(decision))

    labels = _settle_data(arguments, automatic, settle)
    facts = automatic.facts
    on_cpu = not torch.accelerator.is_available()
    settle(rules.decide_start(arguments, automatic.seconds, on_cpu))
    known = (arguments.model_name_or_path, arguments.config_name, arguments.backbone, arguments.backbone_weights)
    if not any(known):
        settle([weights_in_reach(arguments, facts.num_channels)])
    is_pretrained = bool(arguments.model_name_or_path or arguments.backbone or arguments.backbone_weights)
    settle(rules.decide_normalization(facts, is_pretrained))
    settle(rules.decide_loss(facts))
    speed = _settle_precision(arguments, automatic, labels, settle)  # of one process
    views = rules.deserved_views(facts, is_pretrained)
    megapixels = views * facts.megapixels
    if automatic.seconds:
        seconds = max(1.0, (1 - rules.EVALUATION_SHARE) * automatic.seconds - automatic.elapsed())
        megapixels = seconds * speed.megapixels * num_processes
    architecture = architecture_name(arguments)
    if not arguments.image_size:
        settle(rules.decide_images(facts, megapixels, architecture, is_pretrained))
    crop = arguments.crop_size[0] * arguments.crop_size[-1] / 1e6
    megapixels = megapixels if automatic.seconds else views * crop
    passes = megapixels / facts.megapixels / rules.shown_scale(facts, arguments) ** 2 / facts.num_images
    changes = rules.decide_augmentation(facts, passes)
    settle([change for change in changes if change.name != "photometric" or arguments.photometric_strength == 1])
    settle(rules.decide_dropout(arguments, architecture, passes))
    if rules.has_position_table(architecture) and not arguments.model_name_or_path:
        settle(rules.decide_positions(arguments))
    if not automatic.given & BATCH_ARGUMENTS:
        settle(rules.decide_batch(arguments.crop_size, facts.num_images, megapixels / num_processes, num_processes))
        settle(fit_memory(arguments, speed, labels, show))
    settle(rules.decide_evaluation(facts, arguments, plan.free_memory()))
    rates = rules.rates_of(architecture, is_pretrained) or _measure_rates(arguments, automatic, speed)
    steps = _settle_length(arguments, automatic, speed, views, settle)
    settle(rules.decide_optimizer(rates, steps, rules.rates_of(architecture, is_pretrained=False)))
    return automatic


def architecture_name(arguments: Arguments) -> str:
    """The key of `ARCHITECTURES`, or what another library calls it."""
    start = arguments.config_name or arguments.model_name_or_path
    if not start:
        return arguments.architecture or "segformer"
    token = arguments.token or arguments.hub_token
    config, _ = PreTrainedConfig.get_config_dict(start, cache_dir=arguments.cache_dir, token=token)
    return config.get("model_type", "").removeprefix("segtx_")


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
        settle(rules.decide_held_out(len(train) + len(validation)))
    train, validation, labels = setup.read_data(arguments, check=True)
    automatic.facts = measure_facts(train, len(validation))
    return labels


def _settle_precision(arguments: Arguments, automatic: Automatic, labels: Labels, settle: Callable) -> Speed:
    """Measures steps in both precisions; returns the speed of the one that was chosen.

    The crops are such as most images have room for: the pixels of a step decide its time, hardly their shape.
    """
    trial, facts = replace(arguments, max_grad_norm=1.0, image_size=[]), automatic.facts
    if "crop_size" not in automatic.given:
        trial.crop_size = [min(256, rules.multiple_of(side, 32)) for side in (facts.height, facts.width)]
    if not automatic.given & BATCH_ARGUMENTS:
        trial.per_device_train_batch_size = rules.decide_batch(trial.crop_size, facts.num_images, TRIAL_MEGAPIXELS)[
            0
        ].value
    speeds = measure_speeds(trial, labels)
    if not speeds:
        raise ValueError(
            f"not even {trial.per_device_train_batch_size} crops of {trial.crop_size} pixels fit into memory; choose a "
            "smaller `size`"
        )
    settle(rules.decide_precision(speeds))
    return next((speed for speed in speeds if speed.precision == arguments.mixed_precision), speeds[0])


def _measure_rates(arguments: Arguments, automatic: Automatic, speed: Speed) -> Rates:
    """For an architecture whose row has none: those of a range test, if there is time for one."""
    usual = Rates("adamw", 1e-4, 1.0, 0.01, "usual for transformers")
    if "learning_rate" in automatic.given:
        return usual
    crops = arguments.per_device_train_batch_size * arguments.crop_size[0] * arguments.crop_size[-1] / 1e6
    steps = range_test.STEPS
    if automatic.seconds:
        steps = min(steps, int(RANGE_TEST_SHARE * automatic.seconds * speed.megapixels / crops))
    if steps < range_test.FEWEST_STEPS:
        return usual._replace(source=f"{usual.source}: there is no time for a range test")
    with _single_process():
        losses = plan.in_new_process(range_test.measure_losses, arguments, steps)
    if losses is None:
        return usual._replace(source=f"{usual.source}: the memory does not suffice for a range test")
    rate = range_test.suitable_rate(losses, steps)
    return usual._replace(learning_rate=rate, source=f"measured by a range test of {steps} steps")


def _settle_length(arguments: Arguments, automatic: Automatic, speed: Speed, views: int, settle: Callable) -> int:
    """Steps and evaluations; returns the number of steps."""
    facts, batch = automatic.facts, arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    batch = arguments.total_batch_size or batch * automatic.num_processes
    crop = arguments.crop_size[0] * arguments.crop_size[-1] / 1e6
    megapixels = speed.megapixels * automatic.num_processes  # a second
    step_seconds = batch * crop / megapixels
    scale = rules.shown_scale(facts, arguments)
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
        first = max(
            1, min(math.ceil(total / 10), int((rules.FIRST_EVALUATION_SECONDS - automatic.elapsed()) / step_seconds))
        )
        length = Length(total, math.ceil(total / 10), first)
    else:
        left = USED_SHARE * automatic.seconds - automatic.elapsed() - START_SECONDS
        length = rules.plan_length(left, step_seconds, automatic.evaluation_seconds, automatic.elapsed())
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
    total = rules.steps_that_fit(step, left, step_seconds, evaluation_seconds, arguments.evaluation_steps)
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
