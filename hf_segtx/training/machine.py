"""What a run gets from the machine it runs on: processes, cores, memory, and its name for the results."""

import ctypes
import os
import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list


class SaidByMain(ValueError):
    """What the main process raises as well: to be said once."""


def everywhere(function, *inputs, only_main: bool = False):
    """The function's result; what goes wrong in the main process is an error in all of them, so that none waits.

    Args:
        only_main: call it in the main process alone, and give its result to the others.

    Raises:
        ValueError, OSError: that of the function; `SaidByMain` in other processes if the main one fails.
    """
    process = PartialState()
    result = error = None
    if process.is_main_process or not only_main:
        try:
            result = function(*inputs)
        except (ValueError, OSError) as caught:
            error = caught
    box = [str(error) if error else None, result if only_main else None]
    broadcast_object_list(box)
    if box[0] is not None and not process.is_main_process:
        raise SaidByMain(box[0]) from error
    if error is not None:
        raise error
    return box[1] if only_main else result


def means(accelerator: Accelerator, *numbers) -> list[float]:
    """The mean of each number over all processes."""
    numbers = [number.full_tensor() if hasattr(number, "full_tensor") else number for number in numbers]  # FSDP's
    tensors = [torch.as_tensor(number, dtype=torch.float32, device=accelerator.device) for number in numbers]
    return accelerator.reduce(torch.stack(tensors), "mean").tolist()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, of whatever device, or Python had not enough memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Makes of what torch raises for want of memory, and for processes that are gone, errors that say the cure.

    Raises:
        OSError: for these.
        ValueError: what was wrong with a sample that another process read, without its traceback.
    """
    try:
        yield
    except (MemoryError, RuntimeError, ValueError) as error:
        text = str(error)
        if is_out_of_memory(error):
            raise OSError(
                f"there is not enough memory ({text.splitlines()[0] if text else 'of the machine'}); lower "
                "per_device_train_batch_size (total_batch_size keeps the step as it is), add gradient_checkpointing, "
                "or let `segtx plan` look for what fits"
            ) from error
        if isinstance(error, RuntimeError) and "DataLoader worker" in text:
            raise OSError(
                f"a process that reads images is gone ({text.splitlines()[0]}); if the system ended it for its memory, "
                "lower dataloader_num_workers or cache_gigabytes; then resume_from_checkpoint latest goes on"
            ) from error
        if isinstance(error, ValueError) and text.startswith("Caught ValueError in DataLoader worker"):
            raise ValueError(text.rpartition("\nValueError: ")[2]) from error
        raise


def use_cores(accelerator: Accelerator, num_threads: int | None) -> None:
    """On a CPU, `num_threads`, or what OMP_NUM_THREADS says, or an equal share of the cores for each process.

    Launchers set OMP_NUM_THREADS to 1 if nobody has said anything; that is not what is meant here.
    """
    if accelerator.device.type == "cpu" and num_threads is None and _is_launchers_choice():
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        num_threads = max(1, len(os.sched_getaffinity(0)) // processes)
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def _is_launchers_choice() -> bool:
    """Whether OMP_NUM_THREADS is what `accelerate launch` or torchrun sets, and not what the user has set."""
    is_launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if not is_launched or os.environ.get("OMP_NUM_THREADS") != "1":
        return False
    launcher = Path(f"/proc/{os.getppid()}")
    try:  # the environment that it was started with, not the one that it made
        said = (launcher / "environ").read_text().split("\0") + (launcher / "cmdline").read_text().split("\0")
    except OSError:  # no Linux
        return True
    return not any(word.startswith(("OMP_NUM_THREADS=", "--num_cpu_threads_per_process")) for word in said)


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU, lets glibc keep the memory of a step for the next one, instead of having the kernel clear it anew.

    A quarter of the processor time of a step of SegFormer-B0 went there. Does nothing with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if device.type == "cpu" and mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)


def peak_memory() -> float:
    """Gigabytes (1e9 bytes) of the accelerator, or of the process on a CPU, at their highest so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def machine(accelerator: Accelerator) -> str:
    """The hardware in words."""
    if accelerator.device.type == "cuda":
        return f"{accelerator.num_processes} x {torch.cuda.get_device_name()}"
    return f"{accelerator.num_processes} process(es) of {torch.get_num_threads()} CPU threads ({platform.machine()})"
