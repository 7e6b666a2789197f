"""Where every cell of a study stands, read from its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparsemm_eval.lmms.results import ResultsFile
from sparsemm_eval.study import claims
from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.folder import CellFolder, StudyFolder, read_json

#: In the order in which they are counted.
STATES = ("done", "running", "interrupted", "failed", "pending")


@dataclass(frozen=True)
class View:
    """One cell.

    Attributes
    ----------
    id, model, method : str
    budget : int or None
    tasks : tuple of str
    state : str
        ``pending``: nobody has begun; ``interrupted``: begun, and nobody living works on it.
    attempts : int
    answers : int
        In the journal.
    documents : int or None
        That will be or were scored, as far as is known.
    seconds : float or None
    scores : dict
        ``task: score`` by each task's primary metric.
    error : str or None
    agreement : str or None
        ``yes``, why there is none, or None for a cell without a reference.
    host : str or None
        Where it runs or ran.
    results : str or None
        Path of lmms-eval's file.
    """

    id: str
    model: str
    method: str
    budget: int | None
    tasks: tuple[str, ...]
    state: str
    attempts: int
    answers: int
    documents: int | None
    seconds: float | None
    scores: Mapping[str, float]
    error: str | None
    agreement: str | None
    host: str | None
    results: str | None

    def record(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


def views(study: StudyFolder, cells: Sequence[Cell], documents: Callable[[Cell], int | None]) -> list[View]:
    """All cells as they stand now.

    Parameters
    ----------
    study : StudyFolder
    cells : sequence of Cell
    documents : callable
        How many documents a cell will score.
    """
    return [view(study.cell(cell.id), cell, documents(cell)) for cell in cells]


def view(folder: CellFolder, cell: Cell, documents: int | None) -> View:
    """One cell as it stands now."""
    status = folder.status()
    state = state_of(folder, status)
    results = status.get("results")
    return View(
        id=cell.id,
        model=cell.model,
        method=cell.method,
        budget=cell.budget,
        tasks=cell.tasks,
        state=state,
        attempts=status.get("attempts", 0),
        answers=0 if state in ("pending", "done") else folder.answers(),
        documents=status.get("documents") or documents,
        seconds=status.get("seconds"),
        scores=scores_of(folder, cell, status) if state == "done" else {},
        error=status.get("error"),
        agreement=status.get("agreement"),
        host=status.get("host"),
        results=str(folder.root / results) if results else None,
    )


def state_of(folder: CellFolder, status: Mapping[str, Any]) -> str:
    """One of `STATES`."""
    state = status.get("state")
    if state == "done":
        return "done"
    if claims.holder(folder.root) is not None:
        return "running"
    return {"running": "interrupted", None: "pending"}.get(state, state)


def scores_of(folder: CellFolder, cell: Cell, status: Mapping[str, Any]) -> dict[str, float]:
    """A done cell's score by task, in each task's primary metric."""
    from sparsemm_eval.study.metrics import primary

    path = folder.root / str(status.get("results"))
    contents = read_json(path)
    if contents is None:
        return {}
    file = ResultsFile(path, contents)
    tasks = [task for name in cell.tasks for task in file.tasks_of(name)]
    found = {}
    for task in tasks:
        scores = file.scores(task)
        metric = primary(task, scores)
        if metric is not None:
            found[task] = scores[metric.name]
    return found
