"""What a running study shows: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sparsemm_eval.study import estimate, overview
from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.folder import StudyFolder
from sparsemm_eval.study.overview import STATES, View

_COLOURS = {"done": "green", "running": "cyan", "failed": "red", "interrupted": "yellow", "pending": "dim"}
_EVERY = 2.0  # seconds between two looks at the folder
_SHORT = 60  # characters of an error in a table


class Plain:
    """One line for every event, for logs and pipes.

    Parameters
    ----------
    study : StudyFolder
    cells : sequence of Cell
    stream : text file, optional
        Standard output by default.
    """

    def __init__(self, study: StudyFolder, cells: Sequence[Cell], stream: TextIO | None = None):
        self.study, self.cells, self.stream = study, list(cells), stream
        self._started: set[str] = set()
        self._ended: set[str] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def started(self, cell: Cell) -> None:
        """Name the cell."""
        with self._lock:
            self._started.add(cell.id)
        self._say(f"start   {cell.id}")

    def ended(self, cell: Cell, status: Mapping[str, Any]) -> None:
        """Name the cell, its scores or its error, and how far the study is."""
        with self._lock:
            if status["state"] in ("done", "failed"):
                self._ended.add(cell.id)
            count = f"[{len(self._ended)}/{len(self.cells)}]"
            here = "" if cell.id in self._started else "  (before, or by another runner)"
        if status["state"] == "done":
            scores = overview.scores_of(self.study.cell(cell.id), cell, status)
            detail = f"{_scores(scores)}  {estimate.text_of_seconds(status.get('seconds'))}"
        else:
            detail = status.get("error") or "left for another time"
        note = status.get("agreement")
        if note not in (None, "yes"):
            detail += f"  (without agreement: {note})"
        self._say(f"{status['state']:7} {cell.id}  {detail}{here}  {count}")

    def refresh(self) -> None:
        """Nothing to do between events."""

    def _say(self, line: str) -> None:
        with self._lock:
            print(line, flush=True, file=self.stream)


class Terminal(Plain):
    """A live table of the cells that matter now, with progress and time left.

    Parameters
    ----------
    study : StudyFolder
    cells : sequence of Cell
    workers : int
        Cells that run side by side.
    console : rich.console.Console
    """

    def __init__(self, study: StudyFolder, cells: Sequence[Cell], workers: int, console: Console):
        super().__init__(study, cells)
        self.workers, self.console = workers, console
        self._live = Live(console=console, refresh_per_second=2, transient=True)
        self._looked = 0.0
        self._done: dict[str, View] = {}
        self._latest: dict[str, View] = {}

    def __enter__(self) -> Terminal:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def refresh(self) -> None:
        """Look at the folder again, every few seconds."""
        if time.monotonic() - self._looked < _EVERY:
            return
        self._looked = time.monotonic()
        found = self._views()
        left = estimate.seconds_left(self.study, self.cells, self.workers)
        room = max(5, self.console.size.height - 8)
        summary = f"{counts(found)}   left: {estimate.text_of_seconds(left)}"
        self._live.update(Group(table(_now(found, room)), Text(summary)), refresh=True)

    def _views(self) -> list[View]:
        documents = estimate.expected_documents(self.study, self.cells)
        for cell in self.cells:
            # What is done does not change; its scores need not be read every time.
            if cell.id not in self._done:
                one = overview.view(self.study.cell(cell.id), cell, documents(cell))
                (self._done if one.state == "done" else self._latest)[cell.id] = one
        return [self._done.get(cell.id) or self._latest[cell.id] for cell in self.cells]

    def _say(self, line: str) -> None:
        with self._lock:
            self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)


def watcher(study: StudyFolder, cells: Sequence[Cell], workers: int, to_stderr: bool = False) -> Plain:
    """What suits the standard output, or the standard error where the former is for scripts."""
    console = Console(stderr=to_stderr)
    if console.is_terminal:
        return Terminal(study, cells, workers, console)
    return Plain(study, cells, sys.stderr if to_stderr else sys.stdout)


def table(found: Sequence[View]) -> Table:
    """Cells as a table."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("state", "cell"):
        shown.add_column(heading, overflow="fold")
    for heading in ("answers", "time"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("scores", overflow="fold")
    for one in found:
        detail = _scores(one.scores) if one.state == "done" else (one.error or "")[:_SHORT]
        shown.add_row(
            Text(one.state, style=_COLOURS.get(one.state, "")),
            Text(one.id),
            _progress(one),
            "" if one.seconds is None else estimate.text_of_seconds(one.seconds),
            Text(detail),
        )
    return shown


def counts(found: Sequence[View]) -> str:
    """``3 done, 1 running, 4 pending``."""
    numbers = {state: sum(one.state == state for one in found) for state in STATES}
    return ", ".join(f"{number} {state}" for state, number in numbers.items() if number)


def _now(found: Sequence[View], room: int) -> list[View]:
    """What fits on a screen: running first, then the failed and the latest done, then what comes next."""
    order = ("running", "failed", "interrupted", "done", "pending")
    ranked = sorted(found, key=lambda one: order.index(one.state))
    if len(ranked) <= room:
        return ranked
    working = [one for one in ranked if one.state in ("running", "failed", "interrupted")]
    done = [one for one in ranked if one.state == "done"]
    free = max(0, room - len(working))
    return (working + done[max(0, len(done) - free) :])[:room]


def _progress(one: View) -> str:
    if one.state == "done":
        return "" if one.documents is None else str(one.documents)
    if one.state == "pending":
        return ""
    return f"{one.answers}/{'?' if one.documents is None else one.documents}"


def _scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{task} {score:.3f}" for task, score in scores.items())
