"""Checkpoints of a training run that are whole or not there, whenever the run is killed.

    output_dir/
      step_N/                     a loadable model, trainer_state.json, and training_state/, which is Accelerate's
      last -> step_N  best -> step_M
      .partial-*                  what is being written or deleted, or was when the run was killed

A folder is written as `.partial-step_N` and renamed after its last byte has reached the disk, so whatever is called
`step_N` can be resumed from.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn

from ..models.segmentation_base import copy_permissions
from .machine import everywhere


PLAN_FILE = ".plan.json"  # what a resumed run must have in common with this one, for before the first checkpoint


def find_checkpoints(output_dir: Path) -> list[Path]:
    """The `step_N` folders, oldest first."""
    return sorted(
        (path for path in output_dir.glob("step_*") if re.fullmatch(r"step_\d+", path.name)),
        key=lambda path: int(path.name.removeprefix("step_")),
    )


def checkpoint_to_resume(resume: str | None, output_dir: Path) -> Path | None:
    """The folder that `resume` means: "latest", or a folder; None to start at step 0.

    Raises:
        ValueError: if there is none, or it lacks something.
    """
    if resume is None:
        return None
    if resume == "latest":
        if checkpoints := find_checkpoints(output_dir):
            return checkpoints[-1]
        if (output_dir / "train.args").is_file():  # stopped before its first checkpoint: the same run from its start
            return None
        raise ValueError(f"there is no run to resume in {output_dir}; give its output_dir, or a checkpoint folder")
    folder = Path(resume)
    for part in ("config.json", "preprocessor_config.json", "trainer_state.json", "training_state"):
        if not (folder / part).exists():
            raise ValueError(
                f"{folder} is not a checkpoint of a training run: it has no {part}. Give a step_N folder, 'last', or "
                "'latest'; to start a new run from the weights of a model, use model_name_or_path"
            )
    return folder.resolve()


def read_state(checkpoint: Path | None, output_dir: Path) -> dict | None:
    """What `save_checkpoint` was given as the state; of a run without a checkpoint its "plan" alone, if it left one."""
    if checkpoint is not None:
        return json.loads((checkpoint / "trainer_state.json").read_text())
    plan = output_dir / PLAN_FILE
    return {"plan": json.loads(plan.read_text())} if plan.is_file() else None


def check_plan(there: dict, here: dict, place: Path, explain: Callable[[str, object, object], str]) -> None:
    """Compares the plan of an earlier run with the one of now.

    Args:
        place: the checkpoint or the output folder of that run.
        explain: (name in the plan, its value there, its value here) -> the difference in words.

    Raises:
        ValueError: if they differ: going on would neither be that run nor another one from its start.
    """
    if different := [name for name in here if there.get(name) != here[name]]:
        shown = "\n".join(f"  {name}: {explain(name, there.get(name), here[name])}" for name in different)
        folder = place.parent if place.name.startswith("step_") else place
        raise ValueError(
            f"{place} was written by a run that differs:\n{shown}\nresume with its data and arguments (recipe "
            f"{folder / 'train.args'}), or start anew: in another output_dir, maybe from its weights "
            f"(model_name_or_path {place})"
        )


class NotFiniteError(ValueError):
    """The weights are of no use."""


def check_finite(model: nn.Module, step: int) -> None:
    """Raises NotFiniteError if a weight, or a statistic of a batch norm, is infinite or nan."""
    statistics = ((name, value) for name, value in model.named_buffers() if name.endswith(("_mean", "_var")))
    for name, value in (*model.named_parameters(), *statistics):
        if not torch.isfinite(value).all():
            raise NotFiniteError(
                f"after step {step} the weights are not finite ({name}), so they are not saved; lower learning_rate, "
                "lengthen num_warmup_steps, or clip with max_grad_norm 1, and start from an earlier checkpoint or anew"
            )


def delete_run(output_dir: Path) -> None:
    """Deletes what a run writes and nothing else: the folder may hold other things, or be the wrong one."""
    delete_partial(output_dir)
    for folder in find_checkpoints(output_dir):
        shutil.rmtree(folder)
    for (
        name
    ) in f"last best {PLAN_FILE} train.args all_results.json model.safetensors predictions.png curves.png".split():
        (output_dir / name).unlink(missing_ok=True)


def delete_partial(output_dir: Path) -> None:
    """Deletes what a run left that was killed while it wrote."""
    for path in output_dir.glob(".partial-*"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def save_checkpoint(
    accelerator: Accelerator, exported: Callable, processor, state: dict, output_dir: Path, is_best: bool, limit: int
) -> None:
    """Writes `step_N`, makes `last` (and `best`) point to it, and deletes older ones. To be called in all processes.

    Args:
        exported: gives a context with the model to save.
        state: for trainer_state.json; its "step" is N.
        limit: checkpoints to keep, besides the best one.

    Raises:
        NotFiniteError: if a weight is not finite.
        OSError: if it cannot be written; the earlier checkpoints are whole then.
    """
    folder = output_dir / f"step_{state['step']}"
    partial = output_dir / f".partial-{folder.name}"
    with _cleaned_up(partial, f"the checkpoint {folder}"):
        accelerator.save_state(partial / "training_state")  # every process its random generators
        accelerator.wait_for_everyone()
        with exported() as model:
            everywhere(check_finite, model, state["step"], only_main=True)
            if accelerator.is_main_process:
                model.save_pretrained(partial)
        if accelerator.is_main_process:
            processor.save_pretrained(partial)
            (partial / "trainer_state.json").write_text(json.dumps(state, indent=2) + "\n")
            copy_permissions(partial / "trainer_state.json", partial.rglob("*.safetensors"))
            for file in filter(Path.is_file, partial.rglob("*")):  # else a crash of the machine could tear it
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            if folder.exists():  # resumed from an earlier step by name: the same checkpoint once more
                os.replace(folder, output_dir / f".partial-old-{folder.name}")
            os.replace(partial, folder)
    if accelerator.is_main_process:
        point(output_dir / "last", folder)
        if is_best:
            point(output_dir / "best", folder)
        _prune(output_dir, limit)
    accelerator.wait_for_everyone()


def save_final(model, processor, output_dir: Path) -> None:
    """Model and processor in `output_dir` itself; file by file renamed when all are written.

    Raises:
        OSError: as `save_checkpoint`.
    """
    partial = output_dir / ".partial-final"
    with _cleaned_up(partial, f"the final model in {output_dir}"):
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        for file in partial.iterdir():
            os.replace(file, output_dir / file.name)
        partial.rmdir()


@contextmanager
def _cleaned_up(partial: Path, what: str) -> Iterator[None]:
    """Deletes `partial` if writing it fails; an OSError with the cure for whatever torch and safetensors raise then."""
    try:
        yield
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(error, (OSError, RuntimeError, SafetensorError)):  # of Python, of torch, of safetensors
            raise
        if "DataLoader worker" in str(error):  # torch raises that anywhere, when it hears of a process that is gone
            raise
        free = shutil.disk_usage(partial.parent).free / 1e6
        cure = f"{free:.1f} MB are free there; make room"
        if whole := find_checkpoints(partial.parent):
            cure += f" and go on from {whole[-1]} with resume_from_checkpoint latest"
        raise OSError(f"could not write {what} ({error}); {cure}") from error


def point(link: Path, folder: Path) -> None:
    """Makes `link` a relative symbolic link to a folder beside it, in one step."""
    temporary = link.with_name(f".partial-{link.name}")
    temporary.symlink_to(folder.name, target_is_directory=True)
    os.replace(temporary, link)


def _prune(output_dir: Path, limit: int) -> None:
    """Deletes all but the newest `limit` checkpoints and the best one."""
    best = (output_dir / "best").resolve()
    for folder in find_checkpoints(output_dir)[: -max(1, limit)]:
        if folder.resolve() != best:
            os.replace(folder, output_dir / f".partial-old-{folder.name}")  # so that `latest` never sees half of it
    for folder in output_dir.glob(".partial-old-*"):
        shutil.rmtree(folder)
