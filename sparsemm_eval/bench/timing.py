"""Timing several functions against each other on a machine that does other things too."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


def interleaved(
    functions: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each function, called in turn so that a disturbance hits all alike.

    Parameters
    ----------
    functions : mapping of str to callable
        What to time, by name.
    rounds : int
        Calls of each, after a tenth as many that are not timed.
    device : torch.device
        Whose queue to wait for.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: expected at least 1")
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(-max(rounds // 10, 3), rounds):
        for name, function in functions.items():
            started = _now(device)
            function()
            elapsed = _now(device) - started
            if number >= 0:
                seconds[name].append(elapsed)
    return {name: median(values) for name, values in seconds.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
