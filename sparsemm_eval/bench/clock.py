"""Time and memory on a device: CUDA events on a GPU, the host's clock on a CPU."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from statistics import median

import torch


def milliseconds(function: Callable[[], object], rounds: int, device: torch.device) -> float:
    """Median milliseconds of a call, all of which are queued before the first is waited for."""
    if device.type != "cuda":
        taken = []
        for _ in range(rounds):
            started = time.perf_counter()
            function()
            taken.append(1000 * (time.perf_counter() - started))
        return median(taken)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    marks[0].record()
    for mark in marks[1:]:
        function()
        mark.record()
    torch.cuda.synchronize(device)
    return median(begin.elapsed_time(end) for begin, end in itertools.pairwise(marks))


def copy_bandwidth(device: torch.device, size: int | None = None, rounds: int = 20) -> float:
    """Bytes per second that a copy moves, what it reads and what it writes together.

    Parameters
    ----------
    device : torch.device
    size : int, optional
        Bytes to copy; default 1 GiB on a GPU and 256 MiB on a CPU.
    rounds : int
        Timed copies.
    """
    size = size or (2**30 if device.type == "cuda" else 2**28)
    source = torch.randn(size // 4, device=device)  # zeros may be stored more cheaply
    target = torch.empty_like(source)
    for _ in range(3):
        target.copy_(source)
    return 2 * source.numel() * 4 / (milliseconds(lambda: target.copy_(source), rounds, device) / 1000)


def reset_peak(device: torch.device) -> None:
    """Begin a new measurement of the peak."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """Most bytes allocated since ``reset_peak``; None on a CPU, which counts nothing."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
