"""How long a study will take and how much it will write, from what of it is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.folder import StudyFolder

#: Rule of thumb for what a cell leaves on disk where none is done yet: lmms-eval's and the wrapper's records,
#: and per document its journal line, measurements and logged sample. The page tasks on the tiny reader leave
#: 20,000 and 1,700; larger models have more heads to record, other tasks longer prompts to log.
BYTES_PER_CELL = 30_000
BYTES_PER_DOCUMENT = 6_000


@dataclass(frozen=True)
class Estimate:
    """Of the cells that are left.

    Attributes
    ----------
    seconds : float or None
        With all workers busy; None where nothing is known.
    why : str
        What the time rests on, or why there is none.
    bytes : int or None
    bytes_why : str
    """

    seconds: float | None
    why: str
    bytes: int | None
    bytes_why: str

    def record(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "seconds": self.seconds,
            "seconds_from": self.why,
            "bytes": self.bytes,
            "bytes_from": self.bytes_why,
        }


@dataclass(frozen=True)
class _Done:
    cell: Cell
    seconds: float
    documents: int | None


def of(study: StudyFolder, cells: Sequence[Cell], workers: int = 1) -> Estimate:
    """Estimate what is left of some cells.

    A cell takes as long as the median of the done cells that are most like it: of the same model, method and
    tasks, of the same model and tasks, of the same model and method, or of the same model, scaled by the
    number of documents.

    Parameters
    ----------
    study : StudyFolder
        It need not exist.
    cells : sequence of Cell
    workers : int
        Cells that run side by side.
    """
    left, done = _split(study, cells)
    seconds, why = _seconds(left, done, workers)
    return Estimate(seconds, why, *_bytes(study, left, done))


def seconds_left(study: StudyFolder, cells: Sequence[Cell], workers: int = 1) -> float | None:
    """The time alone; it looks at fewer files than `of`."""
    left, done = _split(study, cells)
    return _seconds(left, done, workers)[0]


def _split(study: StudyFolder, cells: Sequence[Cell]) -> tuple[list[Cell], list[_Done]]:
    left, done = [], []
    for cell in cells:
        status = study.cell(cell.id).status()
        if status.get("state") == "done":
            done.append(_Done(cell, status["seconds"], status.get("documents")))
        else:
            left.append(cell)
    return left, done


def _documents_of(cell: Cell, done: Sequence[_Done]) -> int | None:
    """Documents a cell will score: as many as done cells with its tasks, or its limit."""
    for other in done:
        if other.cell.tasks == cell.tasks and other.documents is not None:
            return other.documents
    return None if cell.limit is None else cell.limit * len(cell.tasks)


def expected_documents(study: StudyFolder, cells: Sequence[Cell]) -> Callable[[Cell], int | None]:
    """How many documents each cell will score, as far as that is known; for progress displays."""
    by_tasks: dict[tuple[str, ...], int] = {}
    for cell in cells:
        count = study.cell(cell.id).status().get("documents")
        if count is not None:
            by_tasks[cell.tasks] = count
    return lambda cell: by_tasks.get(cell.tasks, None if cell.limit is None else cell.limit * len(cell.tasks))


def _seconds(left: Sequence[Cell], done: Sequence[_Done], workers: int) -> tuple[float | None, str]:
    if not left:
        return 0.0, "everything is done"
    if not done:
        return None, "no cell of this study is done in its folder yet; run one first (--only)"
    total = 0.0
    for cell in left:
        seconds = _like(cell, done)
        if seconds is None:
            return None, f"no done cell is like {cell.id} (model and number of documents)"
        total += seconds
    return total / workers, f"{len(done)} done cells, {workers} side by side"


_LIKENESS: tuple[Callable[[Cell], Any], ...] = (
    lambda cell: (cell.model, cell.tasks, cell.method),
    lambda cell: (cell.model, cell.tasks),
    lambda cell: (cell.model, cell.method),
    lambda cell: cell.model,
)


def _like(cell: Cell, done: Sequence[_Done]) -> float | None:
    wanted = _documents_of(cell, done)
    for key in _LIKENESS:
        alike = [other for other in done if key(other.cell) == key(cell)]
        same = [other.seconds for other in alike if other.cell.tasks == cell.tasks]
        if same:
            return median(same)
        scaled = [other.seconds * wanted / other.documents for other in alike if wanted and other.documents]
        if scaled:
            return median(scaled)
    return None


def _bytes(study: StudyFolder, left: Sequence[Cell], done: Sequence[_Done]) -> tuple[int | None, str]:
    if not left:
        return 0, "everything is done"
    if done:
        sizes = [study.cell(other.cell.id).size() for other in done]
        return round(len(left) * sum(sizes) / len(sizes)), f"{len(done)} done cells"
    counts = [_documents_of(cell, done) for cell in left]
    if None in counts:
        return None, "no limit is set and no cell is done: the number of documents is not known"
    total = sum(BYTES_PER_CELL + count * BYTES_PER_DOCUMENT for count in counts if count is not None)
    return total, f"rule of thumb: {BYTES_PER_CELL:,} bytes per cell + {BYTES_PER_DOCUMENT:,} per document"


def text_of_seconds(seconds: float | None) -> str:
    """``5025.0`` -> ``1 h 24 min``."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def text_of_bytes(count: int | None) -> str:
    """``1536`` -> ``1.5 KiB``."""
    if count is None:
        return "unknown"
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
