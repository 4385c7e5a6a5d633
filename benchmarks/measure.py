"""Timing and peak memory, shared by the benchmarks: variants take turns in one process, memory is read in a fork."""

import ctypes
import functools
import gc
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode


RESULTS_VARIABLE = "HF_SEGTX_BENCHMARK_RESULTS"  # in the environment: a file for what the benchmarks record


def interleave(
    variants: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each call, taking turns (A B A B ...), so that a change of the machine's speed meets all variants.

    One call of each, which is not counted, goes first. Work on a GPU is waited for.
    """
    seconds = {name: [] for name in variants}
    for counted in [False] + [True] * rounds:
        for name, function in variants.items():
            begin = clock()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if counted:
                seconds[name].append(clock() - begin)
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
            before = resident("VmRSS")
            function()
            os.write(writer, str(resident("VmHWM") - before).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader) as file:
        answer = file.read()
    if os.waitpid(child, 0)[1] != 0:
        raise RuntimeError("the function failed in the forked process; see its error above")
    return int(answer)


def matrix_speed(clock: Callable[[], float] = time.perf_counter) -> float:
    """Multiply-adds a second of a large float32 product on this machine, best of five: of the faster library.

    On a CPU PyTorch gives matrix products to MKL and convolutions to oneDNN, with one thread only those that are
    dilated; see hf_segtx/models/cpu.py.
    """
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    image = torch.randn(1, 2048, 2048, 1).contiguous(memory_format=torch.channels_last)
    seconds = []
    for _ in range(6):
        for product in (lambda: a @ b, lambda: torch.nn.functional.conv2d(image, b[:, :, None, None], dilation=2)):
            start = clock()
            product()
            seconds.append(clock() - start)
    return 2048**3 / min(seconds[2:])


def multiply_adds(model: torch.nn.Module, *inputs: torch.Tensor) -> float:
    """Of the matrix products and convolutions of a forward pass."""
    # With gradients: in prediction rows next to a block count twice, and oneDNN's fused operators not at all.
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops() / 2


def processor() -> str:
    """The GPU's name, or the processor's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    table = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", table.read_text()) if table.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


@functools.cache  # oneDNN says it once in a process
def onednn_instruction_set() -> str:
    """What oneDNN, which computes PyTorch's convolutions on a CPU, says that it uses; it says so to the terminal."""
    if not torch.backends.mkldnn.is_available():
        return "none"
    sys.stdout.flush()
    terminal = os.dup(1)
    with tempfile.TemporaryFile("w+") as file:
        os.dup2(file.fileno(), 1)
        try:
            with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
                # of a size, and with a dilation, for which PyTorch asks oneDNN whatever the number of threads
                torch.nn.functional.conv2d(torch.zeros(1, 16, 64, 64), torch.zeros(16, 16, 3, 3), dilation=2)
            ctypes.CDLL(None).fflush(None)
        finally:
            os.dup2(terminal, 1)
            os.close(terminal)
        file.seek(0)
        found = re.search(r",cpu,isa:(.*)", file.read())
    return found[1] if found else "unknown"


def machine_kind() -> str:
    """What a table's numbers are comparable with."""
    threads = torch.get_num_threads()
    return f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, {threads} thread{'s' if threads > 1 else ''}"


def machine() -> str:
    """All that the numbers depend on, in a line: processor, instruction sets, threads, versions."""
    return (
        f"{processor()}; PyTorch {torch.backends.cpu.get_cpu_capability()}, oneDNN {onednn_instruction_set()}; "
        f"{torch.get_num_threads()} threads of {os.cpu_count()} cores; "
        f"torch {version('torch')}, transformers {version('transformers')}"
    )


def print_header(peer: str) -> None:
    """The columns of `compare`."""
    columns = f"{peer:>14} {'ours':>8} {'faster':>7} {peer:>14} {'ours':>8} {'share':>6} over floor"
    print(f"{'milliseconds, MiB':32} {columns}")


def record(title: str, peer_seconds: float, seconds: float, peer_memory: float, memory: float) -> None:
    """Appends a row of a table to the file that benchmarks/all.py asks for, if it does; memory in bytes."""
    if RESULTS_VARIABLE in os.environ:
        row = {"title": title, "peer_ms": 1e3 * peer_seconds, "ms": 1e3 * seconds}
        row |= {"peer_mib": peer_memory / 2**20, "mib": memory / 2**20}
        with open(os.environ[RESULTS_VARIABLE], "a") as file:
            file.write(json.dumps(row) + "\n")


def compare(title: str, peer: Callable[[], object], ours: Callable[[], object], products: float, rounds: int) -> None:
    """Times both, taking turns, measures their peak additional memory, and prints a line.

    Args:
        products: multiply-adds that ours needs; their time at the speed of one large product is the floor.
    """
    seconds = interleave({"peer": peer, "ours": ours}, rounds)
    theirs, own = (statistics.median(values) for values in seconds.values())
    with ThreadPoolExecutor(2) as both:
        peer_memory, memory = both.map(peak_additional_memory, (peer, ours))
    record(title, theirs, own, peer_memory, memory)
    peer_memory, memory = peer_memory / 2**20, memory / 2**20
    print(
        f"{title:32} {theirs * 1e3:14.0f} {own * 1e3:8.0f} {theirs / own:6.2f}x {peer_memory:14.0f} {memory:8.0f} "
        f"{memory / peer_memory:6.0%} {own * matrix_speed() / products:9.2f}x",
        flush=True,
    )


def resident(field: str) -> int:
    """Bytes of memory of this process: "VmRSS" now, "VmHWM" at their highest."""
    with open("/proc/self/status") as file:
        return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", file.read())[1])
