"""A run that configured itself: keeps its time budget, warns, and leaves a page.

arguments = Arguments(train_dir="data", time_budget="30m")
automatic = configure_everywhere(arguments)
AutomaticRun(arguments, automatic=automatic).run()
"""

import time
from collections.abc import Callable

from torch import nn

from . import setup
from .arguments import Arguments
from .automatic import Automatic, configure_everywhere, settled_steps
from .data_facts import measure_facts
from .decisions import in_words
from .loop import TrainingRun
from .machine import everywhere
from .report_page import (
    REPORTED_IMAGES,
    WORST_IMAGES,
    advise,
    classes_at_zero,
    curves_part,
    examine_model,
    write_run_page,
)


__all__ = ["AutomaticRun", "configure_everywhere"]


class AutomaticRun(TrainingRun):
    """A `TrainingRun` of arguments that were decided, or that a recipe with decisions holds.

    Args:
        automatic: what was decided, and the clock of the time budget if there is one.
    """

    def __init__(self, arguments: Arguments, build_model: Callable = setup.build_model, *, automatic: Automatic):
        self.automatic = automatic
        self.warnings: list[str] = []
        self._warned: set[str] = set()
        self.is_checked = automatic.facts is not None  # the decisions stand on checked data
        super().__init__(arguments, build_model)
        if automatic.facts is None:
            automatic.facts = measure_facts(self.train_dataset, len(self.validation_dataset))

    @property
    def reasons(self) -> dict[str, str]:
        """The reason for each argument that was decided."""
        return self.automatic.reasons

    def evaluate(self) -> bool:
        """As any run's; warns, and at the first evaluation settles the number of steps."""
        start = time.perf_counter()
        is_best = super().evaluate()
        self._warn()
        if self.state.step == self.steps.first_evaluation:
            self._settle_steps(time.perf_counter() - start)
        return is_best

    def _warn(self) -> None:
        """Says what goes wrong, once."""
        state, found = self.state, {"curves": curves_part(self.state.evaluations, self.state.losses)}
        iou = self.scores["per_category_iou"]
        found["zero"] = classes_at_zero(iou, state.step, self.steps.total, self.automatic.facts)
        for kind, text in found.items():
            if text and kind not in self._warned:
                self._warned.add(kind)
                self.warnings.append(text)
                if self.is_main:
                    self.bar.write(f"warning: {text}")

    def _settle_steps(self, evaluation_seconds: float) -> None:
        """Sets the number of steps anew, if there is a time budget, from what was measured so far."""
        arguments, step = self.arguments, self.state.step
        if not self.automatic.is_adjustable(arguments, step, self.steps.total):
            return
        speeds = [entry["images_per_second"] for entry in self.state.history]
        speeds = speeds[len(speeds) // 2 :]  # the first steps also warm up and decode
        seconds = [self.steps.images / speed for speed in speeds or [self.interval.speed(self.steps.images)]]
        numbers = step, sum(seconds) / len(seconds), evaluation_seconds
        decisions = everywhere(settled_steps, self.automatic, arguments, *numbers, only_main=True)
        self.automatic.take(arguments, decisions)
        self.set_steps(setup.count_steps(arguments, len(self.train_dataset), self.accelerator.num_processes))
        if self.is_main:
            for decision in decisions:
                self.bar.write(str(decision))

    def set_steps(self, steps: setup.Steps) -> None:
        """Another number of steps from here on; the learning rates of the steps so far must not depend on it."""
        self.steps = steps
        optimizer, earlier = getattr(self.optimizer, "optimizer", self.optimizer), self.schedule
        self.schedule = setup.build_schedule(self.arguments, optimizer, steps.total)
        self.schedule.load_state_dict(earlier.state_dict())
        for group, rate in zip(optimizer.param_groups, earlier.get_last_lr(), strict=True):
            group["lr"] = rate  # a new schedule sets that of step 0
        self.state.plan = self._plan()
        self.bar.total = steps.total
        self._write_recipe()

    def examine(self, plain: nn.Module) -> dict:
        """What would help most, and for the page what the model does with single images."""
        facts, arguments, automatic = self.automatic.facts, self.arguments, self.automatic
        data = self.train_dataset, self.validation_dataset
        images = everywhere(self._images_in_time, only_main=True)
        self.findings = examine_model(plain, self.processor, *data, self.labels, self.scores, images)
        base = setup.base_size(self.arguments, self.processor)
        advice = advise(
            self.findings,
            self.state.evaluations,
            facts,
            is_pretrained=bool(arguments.model_name_or_path or arguments.backbone or arguments.backbone_weights),
            image_scale=min(base.values()) / min(facts.height, facts.width) if base else 1.0,
        )
        decisions = [decision._asdict() for decision in automatic.decisions]
        return {"decisions": decisions, "warnings": self.warnings, "advice": advice}

    def _images_in_time(self) -> int:
        """How many validation images the report may look at: few where the time is over, as on a busy machine."""
        if self.automatic.seconds is None:
            return REPORTED_IMAGES
        a_image = self.scores["seconds"] / max(1, self.scores["images"])
        left = self.automatic.seconds - self.automatic.elapsed()
        return max(WORST_IMAGES, min(REPORTED_IMAGES, int(left / (2 * a_image))))

    def finish(self) -> dict:
        """As any run's, and report.html."""
        results = super().finish()
        if self.is_main:
            write_run_page(self.output_dir, results, self.automatic.facts, self.findings)
            advice = "\n".join(f"{number}. {text}" for number, text in enumerate(results["advice"], 1))
            print(f"what would help most:\n{advice}\nreport: {self.output_dir / 'report.html'}")
            if (seconds := self.automatic.seconds) is not None:
                print(f"took {in_words(self.automatic.elapsed())} of {in_words(seconds)}")
        return results
