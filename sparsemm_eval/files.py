"""The user's cache folder, and files that a killed process leaves with their old content or the new one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import platformdirs


def user_cache(*parts: str) -> Path:
    """A place in the user's cache folder; not made."""
    return Path(platformdirs.user_cache_dir("sparsemm-eval"), *parts)


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a file's content in one step, on disk when this returns; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=path.name, suffix=".tmp", delete=False, encoding="utf-8"
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            # On a full disk what was written would take the room that is missing.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file.name)
            raise
