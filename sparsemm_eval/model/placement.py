"""Where a model runs: device, dtype, and this process's place among the others."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import is_initialized
from accelerate.utils import InitProcessGroupKwargs

from sparsemm_eval.checks import checked, one_of
from sparsemm_eval.errors import ConfigError

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
DTYPES = ("auto", "bfloat16", "float16", "float32")
# Processes wait for each other however unequal their shares take.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Placement:
    """Device and rank of this process.

    Attributes
    ----------
    device : torch.device
        Where inputs go; with a device map, where its first part is.
    device_map : str or None
        How one model is spread over devices; None: all on ``device``.
    dtype : torch.dtype or "auto"
        ``"auto"``: as the checkpoint is stored.
    accelerator : accelerate.Accelerator
        Its process group, for waiting and for lmms-eval to gather results; the model is never wrapped.
    rank, world_size : int
        Over all hosts.
    """

    device: torch.device
    device_map: str | None
    dtype: Any
    accelerator: Accelerator
    rank: int
    world_size: int


def place(device: str, device_map: str | None, dtype: str | None) -> Placement:
    """Choose device and dtype for this process.

    Parameters
    ----------
    device : str
        ``auto`` or a torch device.
    device_map : str or None
        One of `DEVICE_MAPS`, for one process only.
    dtype : str or None
        One of `DTYPES`; None: float32 on the CPU, ``auto`` elsewhere.

    Raises
    ------
    ConfigError
        If the device does not exist here or does not go with the launcher, or the dtype is none of these.
    """
    if dtype is not None:
        checked(one_of(*DTYPES), "dtype", dtype)
    # Processes of a launcher form a group on the CPU only if they are told to, before anything else does it.
    on_cpu = (device == "cpu" or not torch.accelerator.is_available()) and not is_initialized()
    accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    if device_map is not None:
        _check_device_map(device_map, device, accelerator.num_processes)
    chosen = device_named(device) if accelerator.num_processes == 1 else _of_rank(device, accelerator)
    if dtype is None:
        dtype = "float32" if chosen.type == "cpu" and device_map is None else "auto"
    return Placement(
        device=chosen,
        device_map=device_map,
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        accelerator=accelerator,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )


def _check_device_map(device_map: str, device: str, processes: int) -> None:
    checked(one_of(*DEVICE_MAPS), "device_map", device_map)
    if processes > 1:
        raise ConfigError(
            "device_map", device_map, f"none with {processes} processes: each would claim every device"
        )
    if device != "auto":
        raise ConfigError("device", device, f"none beside device_map={device_map}")


def _parse(device: str) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ConfigError("device", device, "auto, cpu, cuda or cuda:N") from error


def device_named(device: str) -> torch.device:
    """A device of this machine; ``auto`` is CUDA where there is one.

    Raises
    ------
    ConfigError
        If there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = _parse(device)
    try:
        if torch.empty(0, device=chosen).is_meta:
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError) as error:
        count = torch.cuda.device_count()
        remedy = f"a device of this machine: cpu or one of {count} CUDA devices"
        raise ConfigError("device", device, remedy) from error
    return chosen


def _of_rank(device: str, accelerator: Accelerator) -> torch.device:
    # The process group's backend fits accelerate's choice of device only.
    chosen = accelerator.device
    if device != "auto" and _parse(device).type != chosen.type:
        remedy = f"{chosen.type}, which the launcher chose for {accelerator.num_processes} processes"
        if chosen.type != "cpu":
            remedy += "; for processes on the CPU set ACCELERATE_USE_CPU=true"
        raise ConfigError("device", device, remedy)
    return chosen
