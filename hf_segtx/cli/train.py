"""Trains a semantic segmentation model, on one CPU or many GPUs.

    segtx train                                      # no arguments: a small SegFormer on embedded scenes
    segtx train --train_dir data --time_budget 30m   # decides everything else; with --dry_run only says what
    segtx train --train_dir data/train --validation_dir data/val --architecture segformer --size b0
    segtx train --recipe segformer_b0_ade20k_512 --train_dir data/train --validation_dir data/val --learning_rate 3e-5
    segtx train --recipe outputs/run/train.args --resume_from_checkpoint latest
    accelerate launch -m hf_segtx train ...          # several GPUs; with --config_file several machines
    torchrun --nproc_per_node 4 -m hf_segtx train ...

What comes out, in `--output_dir`:

    config.json model.safetensors preprocessor_config.json    the final model, for `from_pretrained` and `pipeline`
    README.md all_results.json predictions.png curves.png     its card, scores with their protocol, and pictures
    train.args                                                the arguments of the run, a recipe of its own
    step_N/                                                   checkpoints: a loadable model and `training_state/`
    last -> step_N  best -> step_M                            links to the newest and to the best checkpoint

With data of your own, and neither a recipe nor --max_train_steps or --num_train_epochs, a run configures itself: all
that is not given is decided from the data, the weights in reach, the machine and the time, each with its reason, which
train.args and the card repeat. It warns of what goes wrong, and leaves report.html, with what would help most. The
final model is then the best evaluation's. --automatic False leaves the defaults.

The final model has the weights of the last step, as papers report (averaged ones with `--ema_decay`);
`--load_best_model_at_end` takes those of the best evaluation instead.

A checkpoint is written under another name and renamed when it is whole, so `step_N` is never torn. A run that was
killed and resumed takes the same steps as one that was not. SIGTERM, with which clusters announce that a machine is
taken away, and Ctrl-C let the step (and an evaluation that is due) end, save, print the command that goes on, and end
with exit status 143 or 130; a second Ctrl-C ends at once. Resuming with arguments or data that would make another run
is refused, and so is a folder that a living run writes to. Exit status 2: something that you can cure, said in a line.
"""

import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

from ..training.arguments import Arguments
from ..training.recipes import read_recipe
from .training_flags import given_names, named_flags, parse_training, recipes_of


class StopSignals:
    """SIGTERM and SIGINT: before the first step they end the command; in training they ask for a checkpoint.

    A second SIGINT ends at once, but not one that comes within a second: launchers repeat it.

    Attributes:
        stop_requested: set by the first signal in training.
        is_training: to be set before the first step.
        number: of the first signal.
    """

    def __init__(self):
        self.stop_requested = threading.Event()
        self.is_training = False
        self.number = signal.SIGINT
        self._time = 0.0

    def __enter__(self) -> "StopSignals":
        self._earlier = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _) -> None:
        is_first = not self.stop_requested.is_set()
        is_again = number == signal.SIGINT and not is_first and time.monotonic() > self._time + 1
        if is_first:
            self.number, self._time = number, time.monotonic()
        if is_again or not self.is_training:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a third one does not wait for anything
            raise KeyboardInterrupt
        self.stop_requested.set()
        if is_first and _is_main():
            os.write(2, b"\nstopping after this step, with a checkpoint; Ctrl-C again stops at once, without\n")


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    started = time.perf_counter() - time.process_time()  # what was imported counts, too
    arguments = parse_training(command_line, "train", __doc__)
    command = _starting_command(command_line)
    from ..training.loop import Stopped
    from ..training.machine import SaidByMain

    with StopSignals() as signals:
        try:
            with named_flags():
                training = _prepare(arguments, command_line, started)
                if training is None:
                    return 0
                signals.is_training = True
                training.run(signals.stop_requested)
        except SaidByMain:
            return 2
        except (Stopped, KeyboardInterrupt):
            if _is_main():
                print(f"\n{_advice(arguments, command)}", file=sys.stderr)
            return 128 + signals.number
    return 0


def _prepare(arguments: Arguments, command_line: list[str], started: float):
    """The run, ready for its first step; None if its decisions were only to be shown."""
    from ..training.automatic import LENGTH_ARGUMENTS, configure_everywhere, frozen_decisions
    from ..training.automatic_run import AutomaticRun
    from ..training.loop import TrainingRun

    given = given_names(command_line)
    if arguments.automatic:
        for recipe in recipes_of(command_line):  # a time budget changes the length that it says
            given |= given_names(read_recipe(str(recipe))) - LENGTH_ARGUMENTS
        automatic = configure_everywhere(arguments, given, started=started, show=_say)
        return None if arguments.dry_run else AutomaticRun(arguments, automatic=automatic)
    if arguments.dry_run:
        raise ValueError("dry_run shows decisions, and nothing is to be decided here; add `automatic`")
    frozen = [frozen_decisions(recipe, arguments, given) for recipe in recipes_of(command_line)]
    automatic = next(filter(None, frozen), None)
    return AutomaticRun(arguments, automatic=automatic) if automatic else TrainingRun(arguments)


def _say(decision: str) -> None:
    print(f"--{decision}", flush=True)  # also into a file at once


def _is_main() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


def _advice(arguments: Arguments, command: str) -> str:
    """How to go on after a stop."""
    folder = Path(arguments.output_dir or "")
    recipe = folder / "train.args"
    if not arguments.output_dir or not recipe.is_file():
        return "stopped before the first step; nothing was written"
    again = f"{command} --recipe {shlex.quote(str(recipe))} --resume_from_checkpoint latest"
    if (folder / "last").exists():
        return f"stopped; to go on from the checkpoint {(folder / 'last').resolve().name}:\n{again}"
    return f"stopped before the first checkpoint; to start this run again:\n{again}"


def _starting_command(command_line: list[str]) -> str:
    """How this process was started, launcher and all, without the flags of the run."""
    words = sys.orig_argv
    if "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        try:  # the launcher, which has its own flags before ours
            words = Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\0")[:-1]
        except OSError:  # no Linux
            words = ["accelerate", "launch", "-m", "hf_segtx", "train", *command_line]
    own = words[: len(words) - len(command_line)]
    if not own or words[len(own) :] != command_line:
        return "segtx train"
    if Path(own[0]).name.startswith("python"):
        own[0] = "python"
        if Path(own[1]).name in ("accelerate", "segtx", "torchrun"):
            own = [Path(own[1]).name, *own[2:]]
    return shlex.join(own)
