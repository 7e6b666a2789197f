"""Time and memory on a device: CUDA events on a GPU, the host's clock on a CPU."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch

Result = TypeVar("Result")
Name = TypeVar("Name", bound=Hashable)


def now(device: torch.device) -> float:
    """Seconds of the host's clock once all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def milliseconds(function: Callable[[], object], rounds: int, device: torch.device) -> float:
    """Median milliseconds of a call, all of which are queued before the first is waited for."""
    if device.type != "cuda":
        return 1000 * interleaved({"call": function}, rounds, device, warmup=0)["call"]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    marks[0].record()
    for mark in marks[1:]:
        function()
        mark.record()
    torch.cuda.synchronize(device)
    return median(begin.elapsed_time(end) for begin, end in itertools.pairwise(marks))


def interleaved(
    functions: Mapping[Name, Callable[[], object]],
    rounds: int,
    device: torch.device,
    warmup: int | None = None,
) -> dict[Name, float]:
    """Median seconds of each function, called in turn so that a disturbance hits all alike.

    A number of calls, ``warmup``, come first and are not timed: by default a tenth of ``rounds``, at least 3.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in functions}
    for number in range(-(max(rounds // 10, 3) if warmup is None else warmup), rounds):
        for name, function in functions.items():
            started = now(device)
            function()
            elapsed = now(device) - started
            if number >= 0:
                seconds[name].append(elapsed)
    return {name: median(values) for name, values in seconds.items()}


def timed(work: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """What a piece of work returns, and its seconds; on a CPU those that this process had the processor."""
    clock = time.process_time if device.type == "cpu" else partial(now, device)
    started = clock()
    result = work()
    return result, clock() - started


def copy_bandwidth(device: torch.device, size: int | None = None) -> float:
    """Bytes per second that a copy moves, what it reads and what it writes together.

    It copies `size` bytes: by default 1 GiB on a GPU and 256 MiB on a CPU.
    """
    size = size or (2**30 if device.type == "cuda" else 2**28)
    source = torch.randn(size // 4, device=device)  # zeros may be stored more cheaply
    target = torch.empty_like(source)
    for _ in range(3):
        target.copy_(source)
    return 2 * source.numel() * 4 / (milliseconds(lambda: target.copy_(source), 20, device) / 1000)


def memory_bandwidths(device: torch.device) -> dict[str, float]:
    """Bytes per second of ``copy_bandwidth``, and on a CPU of passes that only read, as decoding does."""
    found = {"copy": copy_bandwidth(device)}
    if device.type != "cuda":
        matrix, vector = torch.randn(2**14, 2**12, device=device), torch.randn(2**12, device=device)
        reads = {"sum": matrix.sum, "matrix-vector product": partial(torch.mv, matrix, vector)}
        taken = interleaved(reads, 20, device)
        found |= {name: matrix.numel() * 4 / seconds for name, seconds in taken.items()}
    return found


def reset_peak(device: torch.device) -> None:
    """Begin a new measurement of the peak."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """Most bytes allocated since ``reset_peak``; None on a CPU, which counts nothing."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def extra_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """Most bytes that a piece of work allocates beside what is there; None on a CPU."""
    reset_peak(device)
    before = peak_bytes(device)
    work()
    after = peak_bytes(device)
    return None if before is None or after is None else after - before


def traced_peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes that the CPU's allocator handed out at a time while a piece of work ran, from a profile."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted(
        (event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"
    )
    return int(torch.tensor([change for _, change in changes]).cumsum(0).max())


def captured(run: Callable[[], None]) -> Callable[[], None]:
    """The same work as a CUDA graph, which is launched at once."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
