"""Checkpoints of a training run that are whole or not there, whenever the run is killed.

    output_dir/
      step_N/                     a loadable model, trainer_state.json, and training_state/, which is Accelerate's
      last -> step_N  best -> step_M
      .partial-*                  what is being written or deleted, or was when the run was killed

A folder is written as `.partial-step_N` and renamed after its last byte has reached the disk, so whatever is called
`step_N` can be resumed from.
"""

import errno
import json
import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from accelerate import Accelerator
from accelerate.utils import load
from safetensors import SafetensorError
from torch import nn

from ..models.segmentation_base import copy_permissions, damaged_file
from .machine import everywhere


COPY_AGAIN = "copy it again, or resume from an earlier step_N"
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
            return _checked(checkpoints[-1], COPY_AGAIN)
        if (output_dir / "train.args").is_file():  # stopped before its first checkpoint: the same run from its start
            return None
        raise ValueError(f"there is no run to resume in {output_dir}; give its output_dir, or a checkpoint folder")
    cure = (
        "give a step_N folder, 'last', or 'latest'; to start a new run from the weights of a model, use "
        "model_name_or_path"
    )
    return _checked(Path(resume), cure).resolve()


def _checked(folder: Path, cure: str) -> Path:
    """The folder, if it has all parts of a checkpoint."""
    for part in ("config.json", "preprocessor_config.json", "trainer_state.json", "training_state"):
        if not (folder / part).exists():
            raise ValueError(f"{folder} is not a checkpoint of a training run: it has no {part}; {cure}")
    return folder


def check_training_state(checkpoint: Path, processes: int, is_sharded: bool) -> None:
    """Opens what accelerate is to read: it says of no file which one is cut off, and of some not even that.

    Raises:
        ValueError: if a file is missing or damaged.
    """
    folder = checkpoint / "training_state"
    needed = {f"random_states_{process}.pkl" for process in range(processes)}
    needed |= set() if is_sharded else {"optimizer.bin"}
    found = {path.name for pattern in ("*.bin", "*.pt", "*.pkl") for path in folder.glob(pattern)}
    for name in sorted(needed | found):
        try:
            load(folder / name, "cpu", mmap=True)
        except FileNotFoundError as error:
            raise ValueError(f"{checkpoint} cannot be resumed: {folder / name} is missing; {COPY_AGAIN}") from error
        except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
            reason = str(error).split(". ")[0]
            raise ValueError(f"{folder / name} is cut off or damaged ({reason}); {COPY_AGAIN}") from error
    if (file := damaged_file(folder)) != folder:
        raise ValueError(f"{file} is cut off or damaged; {COPY_AGAIN}")


def read_state(checkpoint: Path | None, output_dir: Path) -> dict | None:
    """What `save_checkpoint` was given as the state; of a run without a checkpoint its "plan" alone, if it left one.

    Raises:
        ValueError: if the file is damaged.
    """
    if checkpoint is not None:
        return _read_json(checkpoint / "trainer_state.json", "plan")
    plan = output_dir / PLAN_FILE
    return {"plan": _read_json(plan)} if plan.is_file() else None


def _read_json(file: Path, *names: str) -> dict:
    """The object in a JSON file, with at least these entries."""
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is cut off or damaged ({error}); {COPY_AGAIN}, or start anew") from error
    if not isinstance(content, dict) or not content.keys() >= set(names):
        raise ValueError(f"{file} is not what a run wrote, an object with {names}; {COPY_AGAIN}, or start anew")
    return content


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
        free, limit = shutil.disk_usage(partial.parent).free, resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        cure = f"{free / 1e6:.1f} MB are free there; make room"
        if 0 <= limit < free and "No space left" not in str(error):  # torch does not say why it could not write
            cure = f"a file may have {limit / 1e6:.1f} MB at most here; raise the limit (ulimit -f)"
        elif os.strerror(errno.EFBIG) in str(error):
            cure = "the file system takes no file so large; choose another output_dir"
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
