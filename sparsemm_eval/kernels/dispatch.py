"""Which implementation of decode attention runs where."""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

import torch

from sparsemm_eval.errors import ConfigError, UnsupportedError

KERNELS = ("auto", "torch", "triton")


def choose(kernel: str, device: torch.device | str) -> str:
    """Resolve the ``kernel`` knob.

    Parameters
    ----------
    kernel : str
        ``auto`` is triton on CUDA where it is installed, torch elsewhere; ``torch`` and ``triton`` are taken
        at their word.
    device : torch.device or str
        Where the model runs.

    Returns
    -------
    str
        ``torch`` or ``triton``.

    Raises
    ------
    ConfigError
        If ``kernel`` is none of the three.
    UnsupportedError
        If ``triton`` is asked for and cannot run there.
    """
    if kernel not in KERNELS:
        raise ConfigError("kernel", kernel, f"one of {', '.join(KERNELS)}")
    kind = torch.device(device).type
    if kernel == "auto":
        return "triton" if kind == "cuda" and _has_triton() else "torch"
    if kernel == "torch":
        return "torch"
    if not _has_triton():
        raise UnsupportedError("kernel='triton': triton is not installed; install it or use kernel=torch")
    if kind != "cuda" and not (kind == "cpu" and interpreted()):
        raise UnsupportedError(
            f"kernel='triton' on {kind}: Triton kernels need a CUDA GPU; use kernel=torch or kernel=auto "
            "(to check the kernel on a CPU, slowly, start with TRITON_INTERPRET=1)"
        )
    return "triton"


def triton_operators() -> ModuleType:
    """The module with the operators; imported on demand, since importing Triton takes a second."""
    return importlib.import_module("sparsemm_eval.kernels.ragged_op")


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter. Triton looks at this when kernels are defined."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
