"""What a script gets from the machine it runs on: cores, memory, and its name for the results."""

import ctypes
import os
import platform
import resource
import sys

import torch
from accelerate import Accelerator


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
