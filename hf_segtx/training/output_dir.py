"""The output folder of a run: found, claimed, and cleaned of what an earlier run left."""

from pathlib import Path

from .arguments import DEFAULT_OUTPUT_DIR, Arguments
from .checkpoints import delete_partial, delete_run


def claim_output_dir(arguments: Arguments) -> Path:
    """Decides where the output goes and makes sure that it can be written and holds no other run.

    Raises:
        ValueError, OSError: if the folder is not empty or cannot be written.
    """
    resume = arguments.resume_from_checkpoint
    if arguments.output_dir:
        folder = Path(arguments.output_dir)
    elif resume not in (None, "latest"):
        folder = Path(resume).resolve().parent
    else:
        folder = Path(DEFAULT_OUTPUT_DIR)
        numbered = [folder] + [Path(f"{folder}_{number}") for number in range(2, 1000)]
        taken = [path for path in numbered if path.is_dir() and any(path.iterdir())]
        if resume is None:
            folder = next(path for path in numbered if path not in taken)
        elif taken:
            folder = max(taken, key=lambda path: path.stat().st_mtime)
    if folder.is_dir() and any(folder.iterdir()) and resume is None:
        if not arguments.overwrite_output_dir:
            raise ValueError(
                f"output_dir {folder} is not empty. To go on with the run in it, add resume_from_checkpoint latest; "
                "to delete that run, add overwrite_output_dir; or choose another output_dir"
            )
        delete_run(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".partial-test").write_text("")
        (folder / ".partial-test").unlink()
    except OSError as error:
        raise ValueError(f"cannot write to output_dir {folder} ({error}); choose another output_dir") from error
    delete_partial(folder)
    return folder
