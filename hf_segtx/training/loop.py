"""A training run: set up, step, log, evaluate, save, finish, in that order.

    results = TrainingRun(Arguments(train_dir="data/train", architecture="segformer", size="b0")).run()

Steps, epochs and batches: a step is one update of the weights with `total_batch_size` images, or
`per_device_train_batch_size * gradient_accumulation_steps * processes`. The loss of a step is the mean over all valid
pixels of these images, so neither accumulation nor the number of processes changes it (but for ohem, dice, lovasz, rmi
and batch norms, which see a micro-batch of a process; `sync_bn`: of all processes). The images are an endless stream, a
new permutation an epoch; a batch that reaches the end of an epoch goes on with the next one. A step whose loss or
gradient is not finite is left out and counted.

A run that was killed and resumed takes the same steps as one that was not: weights, optimizer, schedule, scaler,
averages and the states of all random generators are restored, the position in the data follows from the step, and what
happens to an image from (seed, epoch, index). On the CPU the weights come out bit-identical.
"""

import copy
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
import transformers
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import broadcast, gather_object, set_seed
from torch import nn
from tqdm.auto import tqdm

from ..hub import check_token, push
from ..inference import as_json, evaluate, protocol
from ..metrics import class_table
from ..visualization import training_curves
from . import setup
from .arguments import FREE_ARGUMENTS, MEANS, Arguments, check_arguments
from .checkpoints import (
    PLAN_FILE,
    check_finite,
    check_plan,
    check_training_state,
    checkpoint_to_resume,
    point,
    read_state,
    save_checkpoint,
    save_final,
)
from .feature_cache import cached_loader
from .fingerprint import changed_samples, data_fingerprint
from .machine import SaidByMain, clear_errors, everywhere, machine, means, peak_memory
from .optim import EMA
from .output_dir import RunLock, claim_output_dir
from .recipes import write_recipe
from .report import (
    check_trackers,
    describe,
    draw_predictions,
    files_of_images,
    log_picture,
    provenance,
    repository_name,
    start_trackers,
)


class Stopped(Exception):
    """A run was asked to stop, has written a checkpoint and ended."""


@dataclass
class RunState:
    """Where a run is, besides its weights, optimizer and random generators; saved with each checkpoint.

    Attributes:
        plan: what a resumed run must have in common with this one.
        step: optimizer steps that were taken or left out.
        seconds: of training, without evaluations and checkpoints.
        history: what was logged, an entry each `logging_steps`.
        evaluations: {"step", "mean_iou", ...} of each evaluation.
        sums: since the last log: steps, their losses, their gradients' norms.
        schedule: state of the learning rates' schedule.
    """

    plan: dict
    step: int = 0
    seconds: float = 0.0
    history: list[dict] = field(default_factory=list)
    evaluations: list[dict] = field(default_factory=list)
    best_step: int | None = None
    best_mean_iou: float | None = None
    sums: list[float] = field(default_factory=lambda: [0, 0.0, 0.0])
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    schedule: dict = field(default_factory=dict)

    @property
    def losses(self) -> list[dict]:
        """What was logged of the steps that were taken."""
        return [entry for entry in self.history if entry["loss"] is not None]


@dataclass
class Interval:
    """The steps since the last log, and the time that they took."""

    steps: int = 0
    waited: float = 0.0  # seconds, for data
    start: float = field(default_factory=lambda: time.perf_counter())  # so that a test can have its clock

    def speed(self, images: int) -> float:
        """Images a second, of steps of so many."""
        return self.steps * images / (time.perf_counter() - self.start)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is no part of the time."""
        pause = time.perf_counter()
        yield
        self.start += time.perf_counter() - pause


def loss_shares(micro_batches: list[dict], ignore_index: int, class_weights, accelerator: Accelerator) -> torch.Tensor:
    """Factors by which micro-batches' mean losses add up to the mean over all valid pixels of a step.

    A micro-batch with few valid pixels must not count as much as a full one. Pixels count with their class weights, as
    in the mean of the weighted loss. The number of processes is there because gradients are averaged over them.
    """
    valid = [batch["labels"][batch["labels"] != ignore_index] for batch in micro_batches]
    if class_weights is None:
        pixels = torch.tensor([float(ids.numel()) for ids in valid], device=accelerator.device)
    else:
        pixels = torch.stack([class_weights[ids].sum() for ids in valid])
    total = accelerator.reduce(pixels.sum(), "sum")
    return pixels * accelerator.num_processes / total.clamp(min=torch.finfo(total.dtype).tiny)


class TrainingRun:
    """Everything of a run, ready for its first step, or for the one after the checkpoint that it resumes.

    Args:
        arguments: what to train, on what and how; completed with what is decided here, such as `output_dir`.
        build_model: (arguments, labels) -> (model, image processor); another one trains another model in this loop.

    Attributes:
        model: as it trains: wrapped, sharded, with adapters.
        bare_model: the same without what accelerate put around it.
        state: see `RunState`.
        is_checked: whether the data were checked before the run.
        reasons: name -> why an argument is as it is, for the recipe and the card.

    Raises:
        ValueError, OSError: for what is wrong with arguments, folders or data, in all processes alike.
    """

    is_checked = False
    reasons: Mapping[str, str] = MappingProxyType({})

    def __init__(self, arguments: Arguments, build_model: Callable = setup.build_model):
        self.arguments = arguments
        self.lock = RunLock()
        try:
            self._set_up(build_model)
        except BaseException:
            self.lock.release()
            raise

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.accelerator.is_main_process

    # ---- setting up

    def _set_up(self, build_model: Callable) -> None:
        """What needs neither data nor model comes first, then the data, then the model."""
        arguments = self.arguments
        on_cpu = not torch.accelerator.is_available()  # said aloud, else processes of torchrun do not find each other
        process = PartialState(cpu=on_cpu)
        everywhere(check_arguments, arguments)
        everywhere(check_trackers, arguments)
        self.token = arguments.hub_token or arguments.token
        user = everywhere(check_token, self.token, only_main=True) if arguments.push_to_hub else None
        everywhere(setup.split_batch, arguments, process.num_processes, on_cpu)
        self.output_dir: Path = everywhere(claim_output_dir, arguments, self.lock, only_main=True)
        arguments.output_dir = str(self.output_dir)
        self.name = everywhere(repository_name, arguments, user)
        resume = arguments.resume_from_checkpoint
        self.checkpoint = everywhere(checkpoint_to_resume, resume, self.output_dir, only_main=True)
        if arguments.cache_features and arguments.feature_views is None:
            arguments.feature_views = 4
        trackers = arguments.report_to if arguments.with_tracking else None
        self.accelerator = setup.build_accelerator(arguments, on_cpu, log_with=trackers, project_dir=self.output_dir)
        data = everywhere(setup.read_data, arguments, process.is_main_process and not self.is_checked)
        self.train_dataset, self.validation_dataset, self.labels = data
        self.steps = setup.count_steps(arguments, len(self.train_dataset), self.accelerator.num_processes)
        self.state = self._starting_state()
        self._set_up_model(build_model)
        self._set_up_position()
        self._write_recipe()

    def _write_recipe(self) -> None:
        if self.is_main:
            (self.output_dir / PLAN_FILE).write_text(json.dumps(self.state.plan) + "\n")
            write_recipe(self.output_dir / "train.args", self.arguments, self.reasons)

    def _set_up_model(self, build_model: Callable) -> None:
        """Model, loss, optimizer, schedule and average."""
        arguments, accelerator = self.arguments, self.accelerator
        set_seed(arguments.seed)
        model, self.processor = everywhere(build_model, arguments, self.labels)
        model.to(accelerator.device)
        everywhere(setup.try_sizes, arguments, model, self.processor, self.validation_dataset)
        transformers.utils.logging.disable_progress_bar()  # of the files that every checkpoint writes
        weights = everywhere(setup.count_class_weights, arguments, self.train_dataset, self.labels, only_main=True)
        self.class_weights, model.loss_function = everywhere(setup.build_loss, arguments, weights, accelerator)
        # Where the weights that train are not the ones to evaluate and save, a copy of the model takes those.
        needs_copy = setup.is_sharded(accelerator) or arguments.tune == "lora"
        saves_weights = needs_copy or arguments.ema_decay is not None
        if self.checkpoint is not None and not saves_weights:
            model.load_state_dict(type(model).from_pretrained(self.checkpoint).state_dict())
        everywhere(setup.choose_parameters, arguments, model)
        self.copied = copy.deepcopy(model) if needs_copy else None
        prepared = everywhere(setup.prepare, arguments, accelerator, model, self.steps.total)
        self.model, self.optimizer, self.schedule = prepared
        self.bare_model = accelerator.unwrap_model(self.model)
        self.ema = EMA(self.bare_model, arguments.ema_decay) if arguments.ema_decay is not None else None
        if self.ema:
            accelerator.register_for_checkpointing(self.ema)
        if not saves_weights:  # `save_pretrained` writes them: once is enough
            accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())
            accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())

    def _set_up_position(self) -> None:
        """The place in the schedule and in the data; the state of the random generators comes last."""
        arguments, accelerator = self.arguments, self.accelerator
        set_seed(arguments.seed, device_specific=True)  # dropout differs between processes, initial weights do not
        if self.checkpoint is not None:
            self.schedule.load_state_dict(self.state.schedule)
        self.loader = setup.build_loader(
            arguments, accelerator, self.train_dataset, self.processor, self.labels, self.state.step
        )
        if arguments.cache_features:
            names = ("train_images", "class_names", "mask_values", "training_data")
            data = {name: self.state.plan[name] for name in names}
            self.loader = cached_loader(arguments, self.bare_model, self.loader, accelerator, data, self._difference)
        if arguments.with_tracking:
            start_trackers(arguments, accelerator)
        if self.checkpoint is not None:
            accelerator.load_state(self.checkpoint / "training_state")  # from here on nothing may draw random numbers
            best = self.output_dir / f"step_{self.state.best_step}"
            if self.is_main and best.is_dir():  # a kill may have come before the link
                point(self.output_dir / "best", best)

    def _starting_state(self) -> RunState:
        """That of the checkpoint, or of a new run.

        Raises:
            ValueError: if the checkpoint is one of another run, by its data or arguments, or a file of it is damaged.
        """
        plan = self._plan()
        if self.arguments.resume_from_checkpoint is None:
            return RunState(plan)
        place = self.checkpoint or self.output_dir
        there = everywhere(read_state, self.checkpoint, self.output_dir) or {"plan": plan}
        everywhere(check_plan, there["plan"], plan, place, self._difference)
        if self.checkpoint is not None:
            parts = (self.checkpoint, self.accelerator.num_processes, setup.is_sharded(self.accelerator))
            everywhere(check_training_state, *parts, only_main=True)
        return RunState(**there)

    def _plan(self) -> dict:
        """What a resumed run must have in common with this one."""
        labels = self.labels
        return {
            "images_per_step": self.steps.images,
            "train_images": len(self.train_dataset),
            "total_steps": self.steps.total,
            "processes": self.accelerator.num_processes,
            "class_names": list(labels.names),
            "mask_values": str((labels.raw_to_train, labels.color_to_train, labels.ignore_index)),
            "training_data": everywhere(data_fingerprint, self.train_dataset, only_main=True),
            "validation_data": everywhere(data_fingerprint, self.validation_dataset, only_main=True),
            **{name: value for name, value in vars(self.arguments).items() if name not in FREE_ARGUMENTS},
        }

    def _difference(self, name: str, there, here) -> str:
        """Of an entry of two plans, in words."""
        datasets = {"training_data": self.train_dataset, "validation_data": self.validation_dataset}
        if name in datasets and there is not None:
            return changed_samples(there, here, datasets[name])
        return f"{there} there, {here} here"

    # ---- the run

    def run(self, stop_requested: threading.Event | None = None) -> dict:
        """Trains, evaluates and saves; returns what all_results.json holds.

        Args:
            stop_requested: looked at after each step; set, the run saves a checkpoint and ends.

        Raises:
            Stopped: after that checkpoint.
            ValueError: if too many steps in a row are not finite.
            OSError: if something cannot be written; the last checkpoint is whole then.
        """
        self.stop_requested = stop_requested or threading.Event()
        self._greet()
        self.bar = tqdm(
            total=self.steps.total,
            initial=self.state.step,
            unit="step",
            disable=not self.is_main,
            mininterval=0.1 if sys.stderr.isatty() else 10,  # a log file gets a line every ten seconds
        )
        try:
            with clear_errors():
                with closing(self.bar):
                    self._train()
                return self.finish()
        finally:
            self.lock.release()

    def _train(self) -> None:
        """All steps that are left, or up to the one after which the run is to stop."""
        self.batches = iter(self.loader)
        self.interval = Interval()
        self.scores = None  # of the last step
        self.model.train()
        while not self.has_ended():
            stop = self.step()
            is_last = self.state.step == self.steps.total
            if is_last or self.state.step % self.arguments.logging_steps == 0:
                self.log()
            self.bar.update()
            is_best = self.evaluate() if self.steps.is_evaluation(self.state.step) else False
            if is_best or stop or self.steps.is_checkpoint(self.state.step):
                self.save(is_best)
            if stop and not is_last:
                raise Stopped

    def _greet(self) -> None:
        """Says what will be trained."""
        if self.is_main:
            parameters = sum(parameter.numel() for parameter in self.bare_model.parameters())
            print(
                f"{type(self.bare_model).__name__}, {parameters / 1e6:.2f} M parameters; "
                f"{len(self.train_dataset)} training and {len(self.validation_dataset)} validation images, "
                f"{len(self.labels.id2label)} classes\n"
                f"steps {self.state.step} to {self.steps.total} of {self.steps.images} images on "
                f"{self.accelerator.num_processes} x {self.accelerator.device.type}, precision "
                f"{self.accelerator.mixed_precision}; output in {self.output_dir}"
            )

    def has_ended(self) -> bool:
        """After the last step, or when as many evaluations as the patience allows came after the best one."""
        later = [entry for entry in self.state.evaluations if entry["step"] > (self.state.best_step or 0)]
        patience = self.arguments.early_stopping_patience or math.inf
        return self.state.step == self.steps.total or len(later) >= patience

    def step(self) -> bool:
        """One update of the weights; returns whether a process was asked to stop."""
        accelerator, model = self.accelerator, self.model
        wait_start = time.perf_counter()
        micro_batches = [next(self.batches) for _ in range(self.arguments.gradient_accumulation_steps)]
        self.interval.waited += time.perf_counter() - wait_start
        shares = loss_shares(micro_batches, self.labels.ignore_index, self.class_weights, accelerator)
        kept_buffers = [buffer.clone() for buffer in model.buffers()]
        loss = torch.zeros((), device=accelerator.device)
        for batch, share in zip(micro_batches, shares, strict=True):
            with accelerator.accumulate(model):  # processes exchange gradients in the last micro-batch only
                part = model(**batch).loss * share
                accelerator.backward(part * len(micro_batches))  # which divides by their number
            loss += part.detach()
        norm = accelerator.clip_grad_norm_(model.parameters(), self.arguments.max_grad_norm or math.inf)
        # Means over the processes, so that all of them decide alike.
        loss, norm, stop = means(accelerator, loss, norm, self.stop_requested.is_set())
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        if is_finite or accelerator.scaler is not None:  # the scaler of fp16 sees it too, and scales less from then on
            self.optimizer.step()
        if is_finite and self.ema:
            self.ema.update()
        self.learning_rate = self.schedule.get_last_lr()[0]
        self.schedule.step()
        self.optimizer.zero_grad()
        self.state.step += 1
        self.interval.steps += 1
        if is_finite:
            self.state.skipped_in_a_row = 0
            self.state.sums = [sum(pair) for pair in zip(self.state.sums, (1, loss, norm), strict=True)]
        else:
            self._leave_out(loss, norm, kept_buffers)
        if not self.state.history:  # until the first means are there
            self._show(self.state.sums[1] / self.state.sums[0] if self.state.sums[0] else None)
        return bool(stop)

    def _leave_out(self, loss: float, norm: float, kept_buffers: list[torch.Tensor]) -> None:
        """Counts a step that was not finite and undoes what it did to batch norm statistics.

        Raises:
            ValueError: if it is one too many in a row.
        """
        for buffer, kept in zip(self.model.buffers(), kept_buffers, strict=True):
            buffer.copy_(kept)
        state, most = self.state, self.arguments.max_skipped_steps
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        self.bar.write(f"step {state.step} left out: loss {loss}, norm of the gradient {norm}")
        if state.skipped_in_a_row >= most:
            files = files_of_images(
                self.loader, (state.step - most) * self.steps.images, state.step * self.steps.images
            )
            raise (ValueError if self.is_main else SaidByMain)(
                f"the loss is {loss} and the norm of its gradient {norm}, not finite in {most} steps in a row; lower "
                "learning_rate, lengthen num_warmup_steps, clip with max_grad_norm 1, use bf16 instead of fp16, or "
                f"look at the files of these steps: {', '.join(files)}"
            )

    def log(self) -> None:
        """An entry of the history, for the progress bar and the trackers, of the steps since the last one."""
        state, interval = self.state, self.interval
        seconds = time.perf_counter() - interval.start
        taken, loss_sum, norm_sum = state.sums
        values = {
            "loss": loss_sum / taken if taken else None,
            "learning_rate": self.learning_rate,
            "gradient_norm": norm_sum / taken if taken else None,
            "images_per_second": interval.steps * self.steps.images / seconds,
            "data_wait_share": interval.waited / seconds,
            "memory_gb": peak_memory(),
            "skipped_steps": state.skipped_steps,
        }
        self._show(values["loss"])
        known = {name: value for name, value in values.items() if value is not None}
        self.accelerator.log(known, step=state.step)
        state.history.append({"step": state.step, **values})
        state.seconds += seconds
        state.sums = [0, 0.0, 0.0]
        self.interval = Interval()

    def _show(self, loss: float | None) -> None:
        """In the progress bar, beside the learning rate and the speed since the last log."""
        seconds = time.perf_counter() - self.interval.start
        values = {
            "loss": math.nan if loss is None else loss,
            "rate": self.learning_rate,
            "images/s": self.interval.steps * self.steps.images / seconds,
        }
        self.bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()}, refresh=False)

    @contextmanager
    def exported(self) -> Iterator[nn.Module]:
        """The model as it is evaluated and saved: averaged, gathered from its shards, without adapters."""
        with self.ema.swapped() if self.ema else nullcontext():
            plain = self.bare_model
            if self.copied is not None:
                plain, weights = self.copied, self.accelerator.get_state_dict(self.model)
                if self.is_main:
                    plain.load_state_dict(weights)
                if self.arguments.tune == "lora":
                    from . import lora

                    plain = lora.merged(plain)
            # All parameters of a copy; else each process has batch norm statistics of its own.
            for tensor in plain.buffers() if self.copied is None else plain.state_dict().values():
                broadcast(tensor)
            yield plain

    def evaluate(self) -> bool:
        """Scores the model as it is now; returns whether it is the best so far."""
        state = self.state
        with self.interval.paused():
            with self.exported() as plain:
                self.scores = self._score(plain)
            self.model.train()
            entry = {"step": state.step, **{key: float(self.scores[key]) for key in MEANS}}
            state.evaluations.append(entry)
            self.accelerator.log({key: entry[key] for key in MEANS}, step=state.step)
            best = max(state.evaluations, key=lambda other: other[self.arguments.metric_for_best_model])  # the first
            state.best_step, state.best_mean_iou = best["step"], best["mean_iou"]
            if self.is_main:
                training_curves(state.evaluations, state.losses).save(self.output_dir / "curves.png")
        return best is entry

    def _score(self, plain: nn.Module) -> dict:
        """Evaluates in all processes; the main process prints the table and draws."""
        # A compiled model would be compiled anew for every image size.
        with torch.compiler.set_stance("force_eager") if self.arguments.compile else nullcontext():
            scores = evaluate(
                plain,
                self.processor,
                self.validation_dataset,
                batch_size=self.arguments.per_device_eval_batch_size,
                num_workers=setup.num_workers(self.arguments, self.accelerator),
            )
        if self.is_main:
            table = class_table(scores, list(self.labels.id2label.values()))
            self.bar.write(f"\nstep {self.state.step} of {self.steps.total}\n{table}")
            picture = draw_predictions(plain, self.processor, self.validation_dataset, self.labels)
            picture.save(self.output_dir / "predictions.png")
            log_picture(self.accelerator, picture, self.state.step)
        return scores

    def save(self, is_best: bool) -> None:
        """Writes a checkpoint."""
        self.state.schedule = self.schedule.state_dict()
        limit = self.arguments.save_total_limit
        with self.interval.paused():
            save_checkpoint(
                self.accelerator, self.exported, self.processor, asdict(self.state), self.output_dir, is_best, limit
            )

    def finish(self) -> dict:
        """The final model, its scores, card and picture; returns what all_results.json holds."""
        state, final_step = self.state, self.state.step
        if self.arguments.load_best_model_at_end and state.best_step != final_step:
            final_step, self.scores = state.best_step, None
        with self.exported() as plain:
            if final_step != state.step:
                plain.load_state_dict(type(plain).from_pretrained(self.output_dir / "best").state_dict())
            self.scores = self.scores or self._score(plain)
            everywhere(check_finite, plain, final_step, only_main=True)
            if self.is_main:
                save_final(plain, self.processor, self.output_dir)
            more_results = self.examine(plain)
        datasets = (self.train_dataset, self.validation_dataset)
        skipped = [error for dataset in datasets for error in getattr(dataset, "skipped", [])]
        results = {
            **as_json(self.scores, list(self.labels.id2label.values())),
            "protocol": protocol(self.processor, self.labels.ignore_index),
            "step": final_step,
            "best_mean_iou": state.best_mean_iou,
            "best_step": state.best_step,
            "evaluations": state.evaluations,
            "losses": state.losses,
            "skipped_steps": state.skipped_steps,
            "skipped_samples": sorted(set(gather_object(skipped))),
            "training_seconds": round(state.seconds, 1),
            "training_images_per_second": round(state.step * self.steps.images / state.seconds, 2),
            "machine": machine(self.accelerator),
            **provenance(self.arguments),
            **more_results,
        }
        if self.is_main:
            self._publish(results, plain.config.model_type)
        for tracker in self.accelerator.trackers:  # `end_training` would end the group of processes, too
            tracker.finish()
        return results

    def examine(self, plain: nn.Module) -> dict:
        """Looks at the final model, for what a kind of run adds to the results; see `AutomaticRun`."""
        return {}

    def _publish(self, results: dict, model_type: str) -> None:
        """Writes the results and the card, says what there is, and uploads it if that was asked for.

        Raises:
            ValueError: if the upload fails, with the command that repeats it.
        """
        (self.output_dir / "all_results.json").write_text(json.dumps(results, indent=2) + "\n")
        describe(self.arguments, results, model_type, self.name, self.steps.images, self.reasons)
        print(
            f"mean IoU {100 * results['mean_iou']:.2f} % after step {results['step']} "
            f"({results['training_seconds']:.0f} s of training)\nmodel and scores: {self.output_dir}\n"
            f"picture (image, truth, prediction): {self.output_dir / 'predictions.png'}"
        )
        if skipped := results["skipped_samples"]:
            print("\n".join([f"left out, {len(skipped)} in all:", *skipped]))
        if self.arguments.push_to_hub:
            print(f"uploaded to {push(self.output_dir, self.name, self.token)}")


def train(arguments: Arguments, build_model: Callable = setup.build_model) -> dict:
    """Trains, evaluates and saves; returns what all_results.json holds.

        results = train(Arguments(train_dir="data/train", validation_dir="data/val", size="b0", max_train_steps=1000))

    With `automatic` or a `time_budget`, whatever has its default is decided first; see `automatic.configure`. The
    group of the processes of a launcher is not ended, so that more runs and evaluations can follow.

    Args:
        arguments: what to train, on what and how.
        build_model: (arguments, labels) -> (model, image processor); another one trains another model in this loop.

    Raises:
        ValueError, OSError: for what is wrong with arguments, folders or data, before the first step; during training
            if too many steps in a row are not finite, or something cannot be written.
    """
    if arguments.automatic or arguments.time_budget:
        from .automatic_run import AutomaticRun, configure_everywhere

        return AutomaticRun(arguments, build_model, automatic=configure_everywhere(arguments)).run()
    return TrainingRun(arguments, build_model).run()
