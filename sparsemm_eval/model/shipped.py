"""Where the shipped readers are. Imports nothing heavy, so that commands can ask before loading torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sparsemm_eval.files import user_cache

ROOT = Path(__file__).parents[1] / "pages" / "readers" / "checkpoints"
#: Readers that are built from what is shipped and a language model: by name, whether the language model is
#: changed as well or only given a vision part.
BUILT = {"smol-reader": True, "smol-reader-aligned": False}
BUILD = 2  # counts changes of how readers are built
# Written down, not found: a reader whose folder is missing must be told from a hub model.
NAMES = ("tiny-reader", "tiny-reader-mistral", "tiny-reader-qwen2vl")
ADAPTER = ROOT / "smol-reader" / "adapter.safetensors"


def resolve(name: str) -> Path | None:
    """Folder of a shipped or built reader for the transformers Auto classes; None for any other name.

    Raises
    ------
    FileNotFoundError
        If the name is known but its weights are missing from this installation, or were not built yet.
    """
    if name not in (*NAMES, *BUILT):
        return None
    folder = built_folder(name) if name in BUILT else ROOT / name
    if not (folder / "model.safetensors").is_file():
        remedy = (
            f"build it with: sparsemm readers build {name}"
            if name in BUILT
            else f"reinstall sparsemm-eval, or make it with: sparsemm pages train --reader {name} "
            f"--out {folder}"
        )
        raise FileNotFoundError(f"the reader {name!r} is missing from this installation ({folder}); {remedy}")
    return folder


def built_folder(name: str) -> Path:
    """Where a built reader is kept: in the user's cache, one folder per adapter and way of building."""
    digest = hashlib.sha256(ADAPTER.read_bytes()).hexdigest() if ADAPTER.is_file() else "unknown"
    return user_cache("readers", f"{name}-{digest[:12]}-{BUILD}")
