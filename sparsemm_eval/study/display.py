"""Where every cell of a study stands, for people and scripts."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.cell_files import CellFiles, read_cell, stale_text
from sparsemm_eval.study.folder import CellFolder, StudyFolder
from sparsemm_eval.study.metrics import PRIMARY, primary

#: In the order in which they are counted. ``interrupted``: begun, and nobody works on it; ``stale``: done
#: with other code, versions, weights or data.
STATES = ("done", "running", "interrupted", "stale", "failed", "pending")
_COLOURS = {"done": "green", "running": "cyan", "failed": "red", "interrupted": "yellow", "stale": "yellow"}
_RANKS = ("running", "failed", "interrupted", "stale", "pending", "done")
_PER_SECOND = 0.5  # looks at the folder
_SHORT = 60  # characters of an error in a table


@dataclass(frozen=True)
class View:
    """One cell as it stands now."""

    id: str
    model: str
    method: str
    budget: int | None
    tasks: tuple[str, ...]
    state: str  # one of `STATES`
    attempts: int
    answers: int  # in the journal
    documents: int | None  # that were or will be scored, as far as is known
    seconds: float | None  # over all attempts
    scores: Mapping[str, float]  # by each task's primary metric
    error: str | None  # why it failed, or what made it stale
    host: str | None  # where it runs or ran
    results: str | None  # the path of lmms-eval's file


def view(folder: CellFolder, cell: Cell) -> View:
    """One cell as it stands now."""
    status = folder.status()
    state = folder.state(cell.hash, status)
    results, error, scores = status.get("results"), status.get("error"), {}
    if state == "done":
        files = read_cell(folder.root)
        # Results that cannot be read make a cell failed, as in every table.
        state, error = ("done", error) if files.done else ("failed", files.status.get("error"))
        scores = _primary_scores(files)
    # A name may stand for a group of tasks, each with so many documents.
    single = cell.limit is not None and set(cell.tasks) <= PRIMARY.keys()
    return View(
        id=cell.id,
        model=cell.model,
        method=cell.method,
        budget=cell.budget,
        tasks=cell.tasks,
        state=state,
        attempts=status.get("attempts", 0),
        answers=0 if state in ("pending", "done") else folder.answers(),
        documents=status.get("documents") or (cell.limit * len(cell.tasks) if single else None),
        seconds=status.get("seconds"),
        scores=scores,
        error=stale_text(status, cell.identity) if state == "stale" else error,
        host=status.get("host"),
        results=str(folder.root / results) if results else None,
    )


def views(study: StudyFolder, cells: Sequence[Cell]) -> list[View]:
    """All cells as they stand now."""
    return [view(study.cell(cell.id), cell) for cell in cells]


def scores_of(folder: CellFolder) -> dict[str, float]:
    """A done cell's score by task, in each task's primary metric."""
    return _primary_scores(read_cell(folder.root))


def _primary_scores(files: CellFiles) -> dict[str, float]:
    if not files.done:
        return {}
    scores = {task: files.results.scores(task) for task in files.tasks}
    metrics = {task: primary(task, known) for task, known in scores.items()}
    return {task: scores[task][metric.name] for task, metric in metrics.items() if metric is not None}


def seconds_left(found: Sequence[View], workers: int = 1) -> float | None:
    """What the cells that are left will take, by the median of done cells of the same model and tasks, or
    else by the model's seconds per document; None where that is not known."""
    total = 0.0
    done = [one for one in found if one.state == "done" and one.seconds]
    for cell in (one for one in found if one.state != "done"):
        alike = [one for one in done if one.model == cell.model]
        same = [one.seconds for one in alike if one.tasks == cell.tasks]
        rates = [one.seconds / one.documents for one in alike if one.documents]
        if not same and not (rates and cell.documents):
            return None
        total += median(same) if same else median(rates) * (cell.documents or 0)
    return total / workers


def print_plan(
    study: StudyFolder, cells: Sequence[Cell], workers: int, nproc: int, as_json: bool = False
) -> None:
    """Print what a study would do; nothing is written."""
    found = views(study, cells)
    left = seconds_left(found, workers)
    commands = [
        shlex.join(["sparsemm", "eval", "--nproc", str(nproc), *cell.arguments(study.cell(cell.id).root)])
        for cell in cells
    ]
    if as_json:
        listed = [
            {**cell.record(study.cell(cell.id).root), "state": one.state, "command": command}
            for cell, one, command in zip(cells, found, commands, strict=True)
        ]
        record = {"folder": str(study.root), "workers": workers, "seconds": left, "cells": listed}
        print(json.dumps(record, indent=2))
        return
    print_table(found)
    for command in commands:
        print(f"$ {command}")
    print(f"\n{len(cells)} cells: {counts(found)}; folder {study.root}")
    unlike = " (no done cell is like those that are left)" if left is None else ""
    print(f"time: {text_of_seconds(left)}{unlike}")
    sizes = [study.cell(one.id).size() for one in found if one.state == "done"]
    if sizes:
        print(f"disk: about {(len(found) - len(sizes)) * median(sizes) / 2**20:.1f} MiB more")


class Watcher:
    """Tells of every event in one line, and in a terminal shows a live table of the cells that matter now."""

    def __init__(self, study: StudyFolder, cells: Sequence[Cell], workers: int, console: Console):
        self.study, self.cells, self.workers, self.console = study, list(cells), workers, console
        self._started: set[str] = set()
        self._ended: set[str] = set()
        self._done: dict[str, View] = {}
        live = Live(console=console, get_renderable=self._now, refresh_per_second=_PER_SECOND, transient=True)
        self._live = live if console.is_terminal else contextlib.nullcontext()

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def started(self, cell: Cell) -> None:
        """Name the cell."""
        self._started.add(cell.id)
        self._say(f"start   {cell.id}")

    def ended(self, cell: Cell, status: Mapping[str, Any]) -> None:
        """Name the cell, its scores or its error, and how far the study is."""
        if status["state"] in ("done", "failed"):
            self._ended.add(cell.id)
        count = f"[{len(self._ended)}/{len(self.cells)}]"
        here = "" if cell.id in self._started else "  (before, or by another runner)"
        detail = status.get("error") or "left for another time"
        if status["state"] == "done":
            scores = scores_of(self.study.cell(cell.id))
            detail = f"{_scores(scores)}  {text_of_seconds(status.get('seconds'))}"
        self._say(f"{status['state']:7} {cell.id}  {detail}{here}  {count}")

    def _say(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)

    def _now(self) -> Group:
        """What fits on a screen: running first, then what went wrong, and what comes next."""
        # What is done does not change; its scores need not be read every time.
        found = [self._done.get(cell.id) or view(self.study.cell(cell.id), cell) for cell in self.cells]
        self._done = {one.id: one for one in found if one.state == "done"}
        ranked = sorted(found, key=lambda one: _RANKS.index(one.state))
        summary = f"{counts(found)}   left: {text_of_seconds(seconds_left(found, self.workers))}"
        # Above: in a narrow terminal rows take several lines, and the screen cuts what is below.
        return Group(Text(summary), table(ranked[: max(5, self.console.size.height - 8)]))


def table(found: Sequence[View]) -> Table:
    """Cells as a table."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("state", no_wrap=True)
    shown.add_column("cell", overflow="fold")
    for heading in ("answers", "time"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("scores", overflow="fold")
    for one in found:
        detail = _scores(one.scores) if one.state == "done" else (one.error or "")[:_SHORT]
        shown.add_row(
            Text(one.state, style=_COLOURS.get(one.state, "dim")),
            Text(one.id),
            _progress(one),
            "" if one.seconds is None else text_of_seconds(one.seconds),
            Text(detail),
        )
    return shown


def print_table(found: Sequence[View]) -> None:
    """Print the cells as a table; where nobody sees a terminal, with every id on one line."""
    console = Console()
    if not console.is_terminal:
        console.width = 1000
    console.print(table(found))


def counts(found: Sequence[View]) -> str:
    """``3 done, 1 running, 4 pending``."""
    return ", ".join(f"{number} {state}" for state, number in numbers(found).items() if number)


def numbers(found: Sequence[View]) -> dict[str, int]:
    """How many cells are in each state."""
    return {state: sum(one.state == state for one in found) for state in STATES}


def _progress(one: View) -> str:
    if one.state == "done":
        return "" if one.documents is None else str(one.documents)
    if one.state == "pending":
        return ""
    return f"{one.answers}/{'?' if one.documents is None else one.documents}"


def _scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{task} {score:.3f}" for task, score in scores.items())


def text_of_seconds(seconds: float | None) -> str:
    """``5025.0`` -> ``1 h 24 min``."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
