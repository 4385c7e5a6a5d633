"""The output folder of a run: found, locked against other runs, and cleaned of what an earlier run left.

    output_dir/.lock     host and process of the run that writes here; its time of change says that the run is alive

A lock is stale, and is taken over, if its process is gone. Of a process on another host, or in another container, it is
not known; its lock is stale if nothing happened to it for some seconds.
"""

import contextlib
import json
import os
import platform
import threading
import time
from pathlib import Path

from .arguments import Arguments
from .checkpoints import delete_partial, delete_run


HEARTBEAT = 4.0  # seconds between signs of life in the lock
UNTELLING = ("train", "training", "images", "best", "last")  # as names of folders
PATIENCE = 20.0  # seconds without one after which a run elsewhere is taken for dead


class InUseError(ValueError):
    """Another run writes into the folder."""


class RunLock:
    """The claim of a run on its output folder."""

    def __init__(self):
        self.file: Path | None = None
        self._released = threading.Event()

    def acquire(self, folder: Path) -> None:
        """Takes the lock of the folder.

        Raises:
            InUseError: if a living process has it, naming host and process.
        """
        file = folder / ".lock"
        while True:
            try:
                with file.open("x") as lock:  # fails if it is there, even if two come at the same time
                    json.dump({**_whereabouts(), "since": time.strftime("%F %T")}, lock)
                break
            except FileExistsError:
                _refuse_if_alive(file)
                file.unlink(missing_ok=True)
        self.file = file
        threading.Thread(target=self._show_life, args=(file,), daemon=True).start()

    def _show_life(self, file: Path) -> None:
        while not self._released.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # the disk may be gone for a while
                os.utime(file)

    def release(self) -> None:
        """Gives the folder back, if it still is this process's; may be called twice."""
        self._released.set()
        with contextlib.suppress(OSError, ValueError):
            if self.file is not None and json.loads(self.file.read_text())["pid"] == os.getpid():
                self.file.unlink()
        self.file = None


def _whereabouts() -> dict:
    """Host and process; "machine" tells hosts of one name, and containers, apart, and changes when it is started."""
    boot, processes = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    machine = f"{boot.read_text().strip()} {os.readlink(processes)}" if boot.exists() else ""
    return {"host": platform.node(), "pid": os.getpid(), "machine": machine, "started": _start_time(os.getpid())}


def _start_time(pid: int) -> str | None:
    """When a living process of this machine began, in units of its own; None if there is no such process."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]  # a zombie does nothing any more
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    import psutil

    return str(psutil.Process(pid).create_time()) if psutil.pid_exists(pid) else None


def _refuse_if_alive(file: Path) -> None:
    try:
        owner = json.loads(file.read_text())
    except FileNotFoundError:
        return
    except ValueError:  # cut off, or being written just now
        owner = {}
    host, pid = owner.get("host", "unknown"), owner.get("pid", "unknown")
    here = _whereabouts()
    if owner.get("machine") == here["machine"] and host == here["host"]:
        if pid == here["pid"] or _start_time(pid) != owner["started"]:
            return
        cure = "wait for it, or stop it"
    else:
        print(f"{file.parent} was in use on host {host}, process {pid}: waiting {PATIENCE:.0f} s for a sign of life")
        before = _changed(file)
        end = time.monotonic() + PATIENCE
        while _changed(file) == before and time.monotonic() < end:
            time.sleep(0.5)
        if _changed(file) in (None, before):
            return
        cure = "wait for it, or stop it there"
    raise InUseError(
        f"output_dir {file.parent} is in use by a run on host {host}, process {pid}, since {owner.get('since')}; "
        f"{cure}, or choose another output_dir"
    )


def _changed(file: Path) -> int | None:
    """When the file was changed; opened, because file systems of networks look again only then."""
    try:
        with file.open() as lock:
            return os.fstat(lock.fileno()).st_mtime_ns
    except OSError:
        return None


def claim_output_dir(arguments: Arguments, lock: RunLock) -> Path:
    """Decides where the output goes, locks it and makes sure that it can be written and holds no other run.

    Raises:
        ValueError: if the folder is not empty, is in use, or cannot be written.
    """
    resume = arguments.resume_from_checkpoint
    if arguments.output_dir:
        folder = Path(arguments.output_dir)
    elif resume not in (None, "latest"):
        folder = Path(resume).resolve().parent
    else:
        name = default_output_dir(arguments)
        numbered = [Path(name + (f"_{number}" if number > 1 else "")) for number in range(1, 1000)]
        taken = [path for path in numbered if _is_taken(path)]
        if resume is None:
            return _first_free([path for path in numbered if path not in taken], lock)
        folder = max(taken, key=lambda path: path.stat().st_mtime) if taken else numbered[0]
    if _is_taken(folder) and resume is None and not arguments.overwrite_output_dir:
        raise ValueError(
            f"output_dir {folder} is not empty. To go on with the run in it, add resume_from_checkpoint latest; "
            "to delete that run, add overwrite_output_dir; or choose another output_dir"
        )
    _take(folder, lock)
    if arguments.overwrite_output_dir:
        delete_run(folder)
    delete_partial(folder)
    return folder


def default_output_dir(arguments: Arguments) -> str:
    """Named after what is trained and on what, such as outputs/segformer_scenes."""

    def name_of(place: str) -> str:
        parts = Path(os.path.abspath(place)).parts[1:]
        return next((part for part in reversed(parts) if part.lower() not in UNTELLING), "data")

    start = arguments.model_name_or_path or arguments.config_name or arguments.architecture or "segformer"
    return f"outputs/{name_of(start)}_{name_of(arguments.train_dir or arguments.dataset_name or 'scenes')}"


def _is_taken(folder: Path) -> bool:
    """Whether there is something in the folder, besides what a run leaves that was killed at its start."""
    return folder.is_dir() and any(not path.name.startswith((".lock", ".partial-")) for path in folder.iterdir())


def _first_free(folders: list[Path], lock: RunLock) -> Path:
    for folder in folders:
        with contextlib.suppress(InUseError):  # by a run that has written nothing yet
            _take(folder, lock)
            return folder
    raise ValueError(f"{folders[0]} to {folders[-1]} are all in use; choose an output_dir")


def _take(folder: Path, lock: RunLock) -> None:
    """Makes and locks the folder.

    Raises:
        ValueError: if that cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(folder)
    except OSError as error:
        raise ValueError(f"cannot write to output_dir {folder} ({error}); choose another output_dir") from error
