"""The result tables of a study folder, written by one runner at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import filelock

from sparsemm_eval.errors import SparseMMError
from sparsemm_eval.study.folder import StudyFolder, is_full

_PATIENCE = 60.0  # seconds for another runner that writes them at the same time


def write_tables(study: StudyFolder, collect: Callable[[Any], Any]) -> str | None:
    """Write the result tables, one runner at a time; returns what went wrong."""
    try:
        with filelock.FileLock(str(study.root / "results.lock"), timeout=_PATIENCE):
            collect(study.root)
    except filelock.Timeout:
        return None  # another runner is at it, and sees the same cells
    except (OSError, SparseMMError) as error:
        full = isinstance(error, OSError) and is_full(error)
        hint = "; the disk is full: make room and run the same command again" if full else ""
        return f"the tables in {study.root} were not written: {error}{hint}"
    return None
