"""Running exactly one cell: what SLURM's array tasks and W&B's agents do."""

from __future__ import annotations

import threading
import time
from typing import Any

from sparsemm_eval.errors import EvaluationError
from sparsemm_eval.study import cell_run, claims, references
from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.cell_run import How, Interrupted
from sparsemm_eval.study.folder import StudyFolder

#: Seconds in which jobs that are started together give their FullKV cells time to begin.
PATIENCE = 180


def run_one(
    study: StudyFolder,
    cell: Cell,
    how: How,
    stop: threading.Event,
    expiry: float = claims.EXPIRY,
    patience: float = 0.0,
) -> dict[str, Any]:
    """Run exactly one cell, unless it is done; waits for its reference while somebody works on that.

    Parameters
    ----------
    study : StudyFolder
        Prepared.
    cell : Cell
    how : How
    stop : threading.Event
    expiry : float
        Seconds after which a silent claim of another machine is dead.
    patience : float
        Seconds in which somebody may still begin with the reference: jobs that start together start in any
        order.

    Returns
    -------
    dict
        The cell's status.

    Raises
    ------
    Interrupted
        When `stop` is set.
    EvaluationError
        If somebody else works on the cell.
    """
    folder = study.cell(cell.id)
    if folder.is_done(cell.hash):
        return folder.status()
    _wait_for_reference(study, cell, how, stop, patience)
    claim = claims.acquire(folder.root, expiry)
    if claim is None:
        who = claims.holder(folder.root, expiry) or {}
        raise EvaluationError(
            f"{cell.id} is being run by process {who.get('pid')} on {who.get('host')}: wait for it, or end it"
        )
    try:
        if folder.is_done(cell.hash):
            return folder.status()
        status = folder.status()
        if status.get("state") == "failed":
            # Whoever names a cell wants it run.
            folder.write_status({**status, "attempts": 0})
        return cell_run.run(study, cell, claim, how, stop)
    finally:
        claim.give_back()


def _wait_for_reference(
    study: StudyFolder, cell: Cell, how: How, stop: threading.Event, patience: float
) -> None:
    deadline = time.monotonic() + patience
    while references.is_running(study, cell) or (
        references.is_to_come(study, cell) and time.monotonic() < deadline
    ):
        if stop.wait(max(how.poll, 0.05)):
            raise Interrupted
