"""Loading a model to be scored, and naming it so that its scores can be told from another's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from sparsemm_eval import compat
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.model import shipped as checkpoints

DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be scored.

    Attributes
    ----------
    model : PreTrainedModel
    processor
    name : str
        Shipped name, hub id, or the name of the folder: never a path.
    revision : str
        Commit of the hub, else ``sha256:…`` of the weights' file (of several, one after the other).
    """

    model: PreTrainedModel
    processor: Any
    name: str
    revision: str


def load_model(
    name: str, device: str = "auto", dtype: str = "auto", revision: str | None = None, local_rank: int = 0
) -> LoadedModel:
    """Load a shipped reader, a hub model or a local folder.

    Parameters
    ----------
    name : str
    device : str
        ``auto`` (the GPU of this process where there is one), ``cpu``, ``cuda``, ``cuda:1`` …
    dtype : str
        ``auto`` (as stored), ``bfloat16``, ``float16``, ``float32``.
    revision : str, optional
        Branch, tag or commit of a hub model.
    local_rank : int
        Number of this process on its machine; picks the GPU.

    Raises
    ------
    ConfigError
        If the model cannot be loaded, or the dtype or the device is none.
    """
    import torch

    if dtype not in DTYPES:
        raise ConfigError("dtype", dtype, "one of " + ", ".join(DTYPES))
    if device == "auto":
        device = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    folder = checkpoints.resolve(name)
    source = folder or name
    try:
        processor = AutoProcessor.from_pretrained(source, revision=revision)
        model = AutoModelForImageTextToText.from_pretrained(
            source, revision=revision, dtype=dtype, attn_implementation="sdpa"
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            "model",
            name,
            f"a shipped reader ({', '.join(checkpoints.NAMES)}), a hub id or the folder of a vision-language "
            f"checkpoint ({error})",
        ) from error
    try:
        model = model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError("device", device, f"a device this machine has ({error})") from error
    if Path(source).is_dir():
        return LoadedModel(
            model, processor, folder.name if folder else Path(name).resolve().name, weights_digest(source)
        )
    return LoadedModel(model, processor, name, compat.hub_commit(name, revision) or "unknown")


def weights_digest(folder: str | Path) -> str:
    """``sha256:…`` of the weights of a checkpoint's folder, all its files one after the other."""
    content = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        with open(path, "rb") as file:
            while block := file.read(2**24):
                content.update(block)
    return f"sha256:{content.hexdigest()}"
