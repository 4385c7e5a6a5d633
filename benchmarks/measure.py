"""Timing and peak memory, shared by the benchmarks: variants take turns in one process, memory is read in a fork."""

import ctypes
import gc
import os
import re
import statistics
import time
from collections.abc import Callable

import torch


def interleave(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, taking turns (A B A B ...), so that a change of the machine's speed meets all variants.

    One call of each, which is not counted, goes first. Work on a GPU is waited for.
    """
    seconds = {name: [] for name in variants}
    for counted in [False] + [True] * rounds:
        for name, function in variants.items():
            begin = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if counted:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, baseline: str) -> float:
    """How many times faster `name` is than `baseline`: the median over the rounds."""
    return statistics.median(b / a for a, b in zip(seconds[name], seconds[baseline], strict=True))


def peak_additional_memory(function: Callable[[], object]) -> int:
    """Bytes by which the resident memory of a forked process rises above its start while it runs `function`.

    For Linux and the CPU. The child calls the function once before, for what is loaded only once, and then gives freed
    memory back, so that the function cannot fill holes unnoticed. It has one thread: OpenMP's do not survive a fork.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            function()
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # peak := now
            before = _resident("VmRSS")
            function()
            os.write(writer, str(_resident("VmHWM") - before).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader) as file:
        answer = file.read()
    if os.waitpid(child, 0)[1] != 0:
        raise RuntimeError("the function failed in the forked process; see its error above")
    return int(answer)


def _resident(field: str) -> int:
    with open("/proc/self/status") as file:
        return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", file.read())[1])
