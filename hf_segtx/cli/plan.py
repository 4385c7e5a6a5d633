"""Plans a training run: measures single steps on this machine and says which settings fit and how long they take.

    segtx plan --recipe segformer_b0_ade20k_512 --num_labels 150
    segtx plan --train_dir data/train --architecture setr --size base --max_train_steps 40000
    segtx plan --recipe ocrnet_hrnet_w48_lip_473 --num_labels 20 --num_images 30462
    segtx plan --recipe segformer_b5_ade20k_640 --num_labels 150 --num_processes 8

It takes the flags of `segtx train` and reads its data for the number of classes and images, unless `--num_labels` (and,
where the recipe counts epochs, `--num_images`) say them. Nothing is trained: the images are noise, the updates thrown
away. What comes out is a table of what was measured, and the command to run, with

- the micro-batch: the largest that divides the images of a step and fits into `--memory_gb` (nine tenths of what is
  free, if it is not given), so the step and with it the recipe stay the same. Batch norms see the micro-batch only;
- gradient checkpointing, if it does not fit without, and bf16 where it is faster, unless the flags say one already;
- a smaller crop only if not even one image fits.

The hours are those of the steps: reading images is hidden behind them if there are enough `--dataloader_num_workers`,
evaluations come on top. With `--num_processes` each process is taken to have a device like this one, and exchanging
gradients to cost nothing.
"""

import shlex
from dataclasses import dataclass
from datetime import timedelta

from ..settings import setting
from .flags import FlagParser
from .training_flags import named_flags, parse_training


@dataclass
class PlanSettings:
    """What to plan for; all other flags are those of `segtx train`."""

    num_labels: int | None = setting(None, "Number of classes; if not given, that of the data.", "[1, 65536]")
    num_images: int | None = setting(None, "Number of training images; if not given, that of the data.", "[1, inf)")
    num_processes: int = setting(1, "Devices like this one to train on together.", "[1, inf)")
    memory_gb: float | None = setting(None, "Memory to fill, 1e9 bytes; if not given, 0.9 of what is free.", "(0, inf)")


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    parser = FlagParser("plan", __doc__, usage="segtx plan [--num_labels N] [--recipe NAME] [--flag value ...]")
    parser.add_dataclass(PlanSettings)
    own, rest = parser.parse_known_args(command_line)
    settings = parser.values_of(PlanSettings, own)
    arguments = parse_training(rest, "plan")
    from ..training.plan import make_plan

    with named_flags(PlanSettings):
        plan = make_plan(arguments, **vars(settings))
    chosen, processes = plan.arguments, settings.num_processes
    added = {"total_batch_size": plan.images, "per_device_train_batch_size": chosen.per_device_train_batch_size}
    added["mixed_precision"] = chosen.mixed_precision
    words = [f"--{name} {value}" for name, value in added.items()]
    words += ["--gradient_checkpointing"] * chosen.gradient_checkpointing
    if chosen.crop_size != arguments.crop_size:
        words.append(f"--crop_size {' '.join(map(str, chosen.crop_size))}")
    launcher = "segtx"
    if processes > 1:
        launcher = f"accelerate launch --num_processes {processes} -m hf_segtx"
    of_all = "" if processes == 1 else f" of each of {processes} processes"
    hours = timedelta(seconds=round(plan.total_steps * plan.seconds))
    print(
        f"a step of {plan.micro_batches} x {chosen.per_device_train_batch_size} images{of_all} takes "
        f"{plan.seconds:.2f} s and {plan.step.memory:.1f} GB; {plan.total_steps} steps take {hours} hours:\n"
        f"{launcher} train {shlex.join(rest)} {' '.join(words)}"
    )
    return 0
