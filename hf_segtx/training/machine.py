"""What a run gets from the machine it runs on: processes, cores, memory, and its name for the results."""

import ctypes
import os
import platform
import resource
import sys

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


def is_launched() -> bool:
    """Whether `accelerate launch` started this process."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ


def use_all_cores(accelerator: Accelerator) -> None:
    """On a CPU `accelerate launch` sets OMP_NUM_THREADS to 1 unless told otherwise; share the cores instead."""
    if accelerator.device.type == "cpu" and is_launched() and os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // accelerator.num_processes))


def keep_freed_memory(accelerator: Accelerator) -> None:
    """On a CPU, lets glibc keep the memory of a step for the next one, instead of having the kernel clear it anew.

    A quarter of the processor time of a step of SegFormer-B0 went there. Does nothing with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if accelerator.device.type == "cpu" and mallopt is not None:
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
