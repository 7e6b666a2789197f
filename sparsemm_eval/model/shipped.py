"""Where the shipped readers are. Imports nothing heavy, so that commands can ask before loading torch."""

from __future__ import annotations

from pathlib import Path

# Written down, not found: a reader whose folder is missing must be told from a hub model.
NAMES = ("tiny-reader", "tiny-reader-mistral", "tiny-reader-qwen2vl")
ROOT = Path(__file__).parents[1] / "pages" / "readers" / "checkpoints"


def resolve(name: str) -> Path | None:
    """Folder of a shipped reader for the transformers Auto classes; None for any other name, hub id or path.

    Raises
    ------
    FileNotFoundError
        If the name is known but its weights are missing from this installation.
    """
    if name not in NAMES:
        return None
    folder = ROOT / name
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"the reader {name!r} is missing from this installation ({folder}); reinstall sparsemm-eval, "
            f"or make it with: sparsemm pages train --reader {name} --out {folder}"
        )
    return folder
