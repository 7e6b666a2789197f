"""Runs a study's cells side by side, with whoever else works on the same folder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sparsemm_eval.study import cell_run, claims, references
from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.cell_run import ClaimLost, How, Interrupted
from sparsemm_eval.study.claims import Claim
from sparsemm_eval.study.folder import StudyFolder
from sparsemm_eval.study.table_files import write_tables
from sparsemm_eval.study.wandb_runs import to_stderr
from sparsemm_eval.study.workers import Workers

#: Seconds between two collections of the results while cells still run.
COLLECT_EVERY = 30.0
_FINAL = ("done", "failed")


class Watcher(Protocol):
    """Sees what a runner does; called from the worker threads."""

    def started(self, cell: Cell) -> None:
        """A worker has begun with a cell."""

    def ended(self, cell: Cell, status: Mapping[str, Any]) -> None:
        """A cell is done, has failed, or was left."""

    def refresh(self) -> None:
        """Some time has passed."""


@dataclass(frozen=True)
class Outcome:
    """What came of a study.

    Attributes
    ----------
    states : dict
        Cell id -> ``done``, ``failed``, ``running`` (somebody else's, where this runner was interrupted) …
    errors : dict
        Cell id -> why it failed.
    problems : tuple of str
        What went wrong beside the cells, for instance tables that could not be written.
    interrupted : bool
    """

    states: Mapping[str, str]
    errors: Mapping[str, str]
    problems: tuple[str, ...] = ()
    interrupted: bool = False

    @property
    def complete(self) -> bool:
        """Whether every cell is done and the tables are written."""
        return not self.problems and all(state == "done" for state in self.states.values())


class Runner:
    """Works on the cells of a study until none is left that it can do something about.

    Parameters
    ----------
    study : StudyFolder
        Prepared.
    cells : sequence of Cell
        Those to run, in this order as far as references allow.
    how : How
    workers : Workers, optional
        One, with all of the machine, by default.
    watcher : Watcher, optional
    retry_failed : bool
        Give cells that have no attempts left new ones.
    expiry : float
        Seconds after which a silent claim of another machine is dead.
    collect : callable or None
        ``folder -> None``: writes the tables.
    """

    def __init__(
        self,
        study: StudyFolder,
        cells: Sequence[Cell],
        how: How,
        workers: Workers | None = None,
        watcher: Watcher | None = None,
        retry_failed: bool = False,
        expiry: float = claims.EXPIRY,
        collect: Callable[[Any], Any] | None = None,
    ):
        self.study, self.cells, self.how, self.workers = study, list(cells), how, workers or Workers()
        self.watcher, self.expiry, self.collect = watcher, expiry, collect
        self.stop = threading.Event()
        self._again = {cell.id for cell in cells} if retry_failed else set()
        self._lock = threading.Lock()
        self._states: dict[str, str] = {}
        self._errors: dict[str, str] = {}
        self._problems: list[str] = []
        self._stale = True

    def run(self) -> Outcome:
        """Run; returns when every cell is done or has failed, or after `stop` was set."""
        with ThreadPoolExecutor(len(self.workers.environments), thread_name_prefix="study") as pool:
            futures = [pool.submit(self._work, surroundings) for surroundings in self.workers.environments]
            try:
                self._attend(futures)
            except BaseException:
                self.stop.set()
                raise
        self._collect(final=True)
        states = {cell.id: self._states.get(cell.id, "pending") for cell in self.cells}
        return Outcome(states, dict(self._errors), tuple(self._problems), self.stop.is_set())

    def _attend(self, futures: Iterable[Any]) -> None:
        """What the main thread does while the workers work."""
        collected = time.monotonic()
        waiting = list(futures)
        while waiting:
            time.sleep(min(self.how.poll, 0.2))
            for future in [future for future in waiting if future.done()]:
                waiting.remove(future)
                # An error of a worker, not of a cell, ends the whole run.
                future.result()
            if self.watcher is not None:
                self.watcher.refresh()
            if time.monotonic() - collected >= COLLECT_EVERY:
                self._collect()
                collected = time.monotonic()

    def _collect(self, final: bool = False) -> None:
        if self.collect is None or not (self._stale or final):
            return
        self._stale = False
        problem = write_tables(self.study, self.collect)
        if problem and final:
            self._problems.append(problem)
        if problem:
            to_stderr(problem)

    def _work(self, surroundings: Mapping[str, str]) -> None:
        how = replace(self.how, environment={**self.how.environment, **surroundings})
        while not self.stop.is_set():
            found = self._next()
            if found is None:
                return
            if isinstance(found, Claim):
                self._run(self._cell_of(found), found, how)
            else:
                self.stop.wait(max(self.how.poll, 0.05))

    def _next(self) -> Claim | bool | None:
        """A claim on the next cell; True to look again later; None when nothing is left."""
        left = False
        for cell in self.cells:
            if self._is_settled(cell):
                continue
            left = True
            if self._must_wait(cell):
                continue
            try:
                claim = self._claim(cell)
            except OSError as error:
                self._note(cell, {"state": "failed", "error": cell_run.disk_text(error, self.study.root)})
                continue
            if claim is not None:
                return claim
        return left or None

    def _claim(self, cell: Cell) -> Claim | None:
        claim = claims.acquire(self.study.cell(cell.id).root, self.expiry)
        if claim is None:
            return None
        # Somebody may have finished it between the look and the claim.
        if self._is_settled(cell):
            claim.release()
            return None
        self._give_new_attempts(cell)
        return claim

    def _is_settled(self, cell: Cell) -> bool:
        with self._lock:
            if self._states.get(cell.id) in _FINAL:
                return True
        folder = self.study.cell(cell.id)
        status = folder.status()
        if folder.is_done(cell.hash):
            self._note(cell, status)
            return True
        exhausted = status.get("state") == "failed" and status["attempts"] > self.how.retries
        with self._lock:
            again = cell.id in self._again
        if exhausted and not again:
            self._note(cell, status)
            return True
        return False

    def _give_new_attempts(self, cell: Cell) -> None:
        with self._lock:
            again = cell.id in self._again
            self._again.discard(cell.id)
        status = self.study.cell(cell.id).status()
        if again and status.get("attempts"):
            self.study.cell(cell.id).write_status({**status, "attempts": 0})

    def _must_wait(self, cell: Cell) -> bool:
        """Whether the FullKV answers to compare with are still to come."""
        if cell.reference is None:
            return False
        for other in self.cells:
            if other.id == cell.reference:
                return not self._is_settled(other)
        return references.is_running(self.study, cell)

    def _run(self, cell: Cell, claim: Claim, how: How) -> None:
        with self._lock:
            self._states[cell.id] = "running"
        if self.watcher is not None:
            self.watcher.started(cell)
        try:
            status = cell_run.run(self.study, cell, claim, how, self.stop)
        except (Interrupted, ClaimLost) as error:
            status = {"state": "pending", "error": str(error) or None}
        finally:
            claim.give_back()
        self._note(cell, status)

    def _note(self, cell: Cell, status: Mapping[str, Any]) -> None:
        with self._lock:
            known = self._states.get(cell.id)
            self._states[cell.id] = status["state"]
            if status.get("error"):
                self._errors[cell.id] = status["error"]
            if status["state"] == "done":
                self._errors.pop(cell.id, None)
            self._stale = True
        if self.watcher is not None and known != status["state"]:
            self.watcher.ended(cell, status)

    def _cell_of(self, claim: Claim) -> Cell:
        return next(cell for cell in self.cells if self.study.cell(cell.id).root == claim.folder)
