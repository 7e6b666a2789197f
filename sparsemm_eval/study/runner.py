"""Runs a study's cells side by side, with whoever else works on the same folder."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

import filelock

from sparsemm_eval.errors import ConfigError, SparseMMError
from sparsemm_eval.files import FileLock
from sparsemm_eval.study import cell_run
from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.cell_run import CellRun, How, Interrupted
from sparsemm_eval.study.display import Watcher
from sparsemm_eval.study.folder import StudyFolder

#: Seconds between two collections of the results while cells still run.
COLLECT_EVERY = 30.0
#: Seconds for another runner that writes the tables at the same time.
PATIENCE = 300.0
_FINAL = ("done", "failed")
#: ``(folder, samples)``: writes a study's tables, those of samples if asked for.
Collect = Callable[[Any, bool], None]


@dataclass(frozen=True)
class Outcome:
    """What came of a study."""

    states: Mapping[str, str]  # cell id -> done, failed, pending …
    errors: Mapping[str, str]  # cell id -> why it failed
    problems: tuple[str, ...] = ()  # beside the cells, for instance tables that could not be written
    interrupted: bool = False

    @property
    def complete(self) -> bool:
        """Whether every cell is done and the tables are written."""
        return not self.problems and all(state == "done" for state in self.states.values())


def on_gpus(gpus: Sequence[str], nproc: int) -> list[dict[str, str]]:
    """What each worker adds to its cells' environment: one worker for every `nproc` GPUs.

    Raises
    ------
    ConfigError
        If the GPUs cannot be split into such groups.
    """
    given = ",".join(gpus)
    if len(set(gpus)) != len(gpus) or not all(gpus):
        raise ConfigError("--gpus", given, "different GPUs, separated by commas, for instance 0,1")
    if len(gpus) % nproc:
        raise ConfigError("--gpus", given, f"a multiple of --nproc ({nproc}) GPUs")
    groups = [gpus[first : first + nproc] for first in range(0, len(gpus), nproc)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]


def on_cpu(count: int) -> list[dict[str, str]]:
    """The same for several workers that share the processor's cores, unless OMP_NUM_THREADS is set."""
    if count == 1 or "OMP_NUM_THREADS" in os.environ:
        return [{}] * count
    return [{"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}] * count


class Runner:
    """Works on the cells of a study until none is left that it can do something about.

    The study's folder is prepared. The watcher is called from the worker threads.
    """

    def __init__(
        self,
        study: StudyFolder,
        cells: Sequence[Cell],  # in the order in which they run
        how: How,
        workers: Sequence[Mapping[str, str]] = ({},),  # additions to the environment of each
        watcher: Watcher | None = None,
        retry_failed: bool = False,  # give cells that have no attempts left new ones
        collect: Collect | None = None,
        wait: bool = True,  # stay until the cells that others run are done
    ):
        self.wait = wait
        self.study, self.cells, self.how, self.workers = study, list(cells), how, list(workers)
        self.watcher, self.collect = watcher, collect
        self.stop = threading.Event()
        self._again = {cell.id for cell in cells} if retry_failed else set()
        self._lock = threading.Lock()
        self._known: dict[str, Mapping[str, Any]] = {}  # statuses of cells
        self._stale = False

    def run(self) -> Outcome:
        """Run; returns when every cell is done or has failed, or after `stop` was set."""
        with ThreadPoolExecutor(len(self.workers), thread_name_prefix="study") as pool:
            try:
                self._attend([pool.submit(self._work, surroundings) for surroundings in self.workers])
            except BaseException:
                self.stop.set()
                raise
        problem = write_tables(self.study, self.collect, samples=True)
        known = {cell.id: self._known.get(cell.id, {"state": "pending"}) for cell in self.cells}
        states = {name: status["state"] for name, status in known.items()}
        errors = {name: status["error"] for name, status in known.items() if status.get("error")}
        return Outcome(states, errors, (problem,) if problem else (), self.stop.is_set())

    def _attend(self, waiting: Collection[Future[None]]) -> None:
        """What the main thread does while the workers work."""
        collected = time.monotonic()
        while waiting:
            done, waiting = wait(waiting, min(self.how.poll, 0.2), FIRST_COMPLETED)
            for future in done:
                # An error of a worker, not of a cell, ends the whole run.
                future.result()
            if self._stale and time.monotonic() - collected >= COLLECT_EVERY:
                self._stale = False
                problem = write_tables(self.study, self.collect, samples=False)
                if problem:
                    print(problem, file=sys.stderr, flush=True)
                collected = time.monotonic()

    def _work(self, surroundings: Mapping[str, str]) -> None:
        how = replace(self.how, environment={**self.how.environment, **surroundings})
        while not self.stop.is_set():
            left = [cell for cell in self.cells if not self._is_settled(cell)]
            if not left:
                return
            # Each of them until one was free; then from the beginning, where FullKV is.
            if not any(self._try(cell, how) for cell in left):
                if not self.wait:
                    return
                self.stop.wait(max(self.how.poll, 0.05))

    def _try(self, cell: Cell, how: How) -> bool:
        """Run a cell if nobody else does."""
        try:
            with self.study.cell(cell.id).owned() as lock:
                # Somebody may have finished it between the look and the lock.
                if lock is None or self._is_settled(cell):
                    return False
                self._run(cell, lock, how)
        except OSError as error:
            self._note(cell, {"state": "failed", "error": cell_run.disk_text(error, self.study.root)})
        return True

    def _is_settled(self, cell: Cell) -> bool:
        with self._lock:
            if self.stop.is_set() or self._state(cell) in _FINAL:
                return True
            again = cell.id in self._again
        folder = self.study.cell(cell.id)
        status = folder.status()
        if status.get("hash") != cell.hash:
            return False
        done = status.get("state") == "done" and folder.has_results(status)
        exhausted = status.get("state") == "failed" and status["attempts"] > self.how.retries
        if done or (exhausted and not again):
            self._note(cell, status)
            return True
        return False

    def _run(self, cell: Cell, lock: int, how: How) -> None:
        if self.watcher is not None:
            self.watcher.started(cell)
        with self._lock:
            afresh = cell.id in self._again
            self._again.discard(cell.id)
        try:
            status = CellRun(self.study, cell, lock, how, self.stop, afresh).run()
        except Interrupted:
            status = {"state": "pending", "error": None}
        self._note(cell, status)

    def _note(self, cell: Cell, status: Mapping[str, Any]) -> None:
        with self._lock:
            before = self._state(cell)
            self._known[cell.id] = status
            self._stale = True
        if self.watcher is not None and before != status["state"]:
            self.watcher.ended(cell, status)

    def _state(self, cell: Cell) -> str | None:
        return self._known.get(cell.id, {}).get("state")


def write_tables(study: StudyFolder, collect: Collect | None, samples: bool) -> str | None:
    """Write the result tables, one runner at a time; returns what went wrong."""
    if collect is None:
        return None
    try:
        with FileLock(str(study.root / "results.lock"), timeout=PATIENCE):
            collect(study.root, samples)
    except filelock.Timeout:
        return f"the tables in {study.root} were not written: another held results.lock for {PATIENCE:g} s"
    except OSError as error:
        return f"the tables were not written: {cell_run.disk_text(error, study.root)}"
    except SparseMMError as error:
        return f"the tables in {study.root} were not written: {error}"
    return None
