"""The FullKV cell of a cell: whether to wait for it, and whether its journal can be compared with."""

from __future__ import annotations

from pathlib import Path

from sparsemm_eval.study import claims
from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.folder import StudyFolder


def journal_of(study: StudyFolder, cell: Cell) -> tuple[Path | None, str | None]:
    """The FullKV journal to compare with, or None and why there is none to be had.

    Both are None for a cell that has no reference in its study.
    """
    if cell.reference is None:
        return None, None
    folder = study.cell(cell.reference)
    status = folder.status()
    if status.get("state") != "done":
        reason = "failed" if status.get("state") == "failed" else "is not done"
        return None, f"the reference {cell.reference} {reason}"
    runs = len(list((folder.journal / "runs").glob("*.json")))
    if runs != 1:
        # After an upgrade in the middle of it, say: a reference is one run.
        return None, f"the journal of the reference {cell.reference} holds {runs} runs instead of one"
    return folder.journal, None


def is_running(study: StudyFolder, cell: Cell) -> bool:
    """Whether somebody works on the reference of a cell at this moment."""
    if cell.reference is None:
        return False
    folder = study.cell(cell.reference)
    return folder.status().get("state") != "done" and claims.holder(folder.root) is not None


def is_to_come(study: StudyFolder, cell: Cell) -> bool:
    """Whether the reference of a cell is neither done nor failed."""
    return cell.reference is not None and study.cell(cell.reference).status().get("state") not in (
        "done",
        "failed",
    )
