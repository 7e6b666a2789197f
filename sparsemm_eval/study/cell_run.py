"""One cell from claim to status: attempts, log, heartbeat, results, W&B."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsemm_eval.errors import EvaluationError, SparseMMError
from sparsemm_eval.lmms import results as lmms_results
from sparsemm_eval.lmms.arguments import Run
from sparsemm_eval.study import claims, processes, references
from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.claims import Claim
from sparsemm_eval.study.folder import CellFolder, StudyFolder, is_full, utc_now
from sparsemm_eval.study.wandb_runs import Tracking

#: ``(cell, lmms-eval's arguments, processes) -> command line``.
Command = Callable[[Cell, Sequence[str], int], list[str]]
_TAIL = 64 * 1024  # bytes of a log that are searched for what went wrong
_LOUD = re.compile(r"\b[A-Za-z_.]*(?:Error|Exception|Interrupt)\b\s*:\s*\S")


class Interrupted(Exception):
    """The runner is asked to end; the cell goes on from its journal another time."""


class ClaimLost(SparseMMError):
    """Another runner has taken the cell over, since this one showed no life for too long."""


def sparsemm_eval_command(cell: Cell, arguments: Sequence[str], nproc: int) -> list[str]:
    """The command of a cell: ``sparsemm eval`` with this Python."""
    return [sys.executable, "-m", "sparsemm_eval", "eval", "--nproc", str(nproc), *arguments]


@dataclass(frozen=True)
class How:
    """How cells are run; nothing here changes a result.

    Attributes
    ----------
    retries : int
        Further attempts of a failing cell.
    nproc : int
        Processes per cell.
    tracking : Tracking
        Where W&B runs go.
    command : callable
    environment : mapping
        Additions for this worker's cells, for instance CUDA_VISIBLE_DEVICES.
    poll : float
        Seconds between two looks at a running process.
    pause : float
        Seconds before another attempt.
    heartbeat : float
        Seconds between two signs of life.
    """

    retries: int = 1
    nproc: int = 1
    tracking: Tracking = field(default_factory=Tracking)
    command: Command = sparsemm_eval_command
    environment: Mapping[str, str] = field(default_factory=dict)
    poll: float = 0.5
    pause: float = 2.0
    heartbeat: float = claims.HEARTBEAT


def run(study: StudyFolder, cell: Cell, claim: Claim, how: How, stop: threading.Event) -> dict[str, Any]:
    """Run a claimed cell until it is done or has no attempts left.

    Returns
    -------
    dict
        Its last status. On a full disk it may be known here only.

    Raises
    ------
    Interrupted
        When `stop` is set; the cell's processes are gone then.
    ClaimLost
    """
    run_of = _CellRun(study, cell, claim, how, stop)
    try:
        status = run_of.until_settled()
    except OSError as error:
        status = run_of.failed_to_write(error)
    return run_of.tracked(status)


class _CellRun:
    def __init__(self, study: StudyFolder, cell: Cell, claim: Claim, how: How, stop: threading.Event):
        self.study, self.cell, self.claim, self.how, self.stop = study, cell, claim, how, stop
        self.folder: CellFolder = study.cell(cell.id)
        self.began = time.monotonic()
        before = self.folder.status()
        self.status: dict[str, Any] = {
            "state": "running",
            "attempts": before.get("attempts", 0),
            "started": utc_now(),
            "ended": None,
            "seconds": None,
            "returncode": None,
            "error": None,
            "results": None,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "hash": cell.hash,
            "documents": None,
            "agreement": None,
        }

    def until_settled(self) -> dict[str, Any]:
        while True:
            done = self._attempt()
            if done or self.status["attempts"] > self.how.retries:
                return self._settle("done" if done else "failed")
            self.folder.write_status({**self.status, "seconds": self._seconds()})
            if self.stop.wait(self.how.pause):
                raise Interrupted

    def failed_to_write(self, error: OSError) -> dict[str, Any]:
        """A failure to write; told to the caller, and to the status if that is possible."""
        self.status["error"] = disk_text(error, self.folder.root)
        try:
            return self._settle("failed")
        except OSError:
            # The status on disk stays what it was, whole: the cell will be resumed from its journal.
            return self.status

    def tracked(self, status: dict[str, Any]) -> dict[str, Any]:
        """The status of a cell that has ended, with what came of logging it to W&B."""
        outcome = self.how.tracking.log_cell(self.study.root, self.cell.id)
        if outcome is None:
            return status
        status = {**status, "wandb": outcome}
        # On a full disk the status that was written before counts.
        with contextlib.suppress(OSError):
            self.folder.write_status(status)
        return status

    def _settle(self, state: str) -> dict[str, Any]:
        self.status.update(state=state, ended=utc_now(), seconds=self._seconds())
        self.folder.write_status(self.status)
        return self.status

    def _seconds(self) -> float:
        return round(time.monotonic() - self.began, 3)

    def _attempt(self) -> bool:
        reference, why_not = references.journal_of(self.study, self.cell)
        self.status.update(returncode=None, error=None, agreement=why_not or ("yes" if reference else None))
        self.folder.write_status(self.status)
        self.folder.clear_results()
        arguments = self.cell.arguments(self.folder.root, reference)
        before = lmms_results.snapshot(self.folder.lmms)
        returncode = self._process(arguments, why_not)
        # An attempt counts when it has ended by itself: a killed runner costs a cell nothing.
        self.status.update(returncode=returncode, attempts=self.status["attempts"] + 1)
        if returncode:
            self.status["error"] = _failure(returncode, self.folder)
            return False
        try:
            found = lmms_results.find(_run_of(self.cell, arguments, self.folder), before)
        except EvaluationError as error:
            self.status["error"] = str(error)
            return False
        self.status["results"] = str(found.path.relative_to(self.folder.root))
        self.status["documents"] = _documents(found)
        return True

    def _process(self, arguments: Sequence[str], note: str | None) -> int:
        line = self.how.command(self.cell, arguments, self.how.nproc)
        surroundings = {**os.environ, **self.how.environment}
        with self.folder.log.open("ab") as log:
            log.write(_heading(line, self.status["attempts"] + 1, note).encode())
            log.flush()
            child = processes.start(line, surroundings, self.claim.token, log)
            try:
                self.claim.note(child=child.pid)
                self._watch(child)
            finally:
                # Also when this process is to end, or has an error of its own.
                processes.end(child, self.claim.token)
            return child.returncode

    def _watch(self, child: Any) -> None:
        beaten = time.monotonic()
        while child.poll() is None:
            if self.stop.wait(self.how.poll):
                raise Interrupted
            if time.monotonic() - beaten >= self.how.heartbeat:
                beaten = time.monotonic()
                if not self.claim.beat():
                    raise ClaimLost(f"{self.cell.id} was taken over by another runner")


def _run_of(cell: Cell, arguments: Sequence[str], folder: CellFolder) -> Run:
    model_args = arguments[list(arguments).index("--model_args") + 1]
    return Run(cell.model_name, model_args, cell.tasks, folder.lmms)


def _documents(found: lmms_results.ResultsFile) -> int | None:
    """Documents that were scored, over all tasks; None where lmms-eval does not say."""
    counts = found.contents.get("n-samples") or {}
    numbers = [entry.get("effective") for entry in counts.values() if isinstance(entry, Mapping)]
    return sum(numbers) if numbers and all(isinstance(number, int) for number in numbers) else None


def _heading(line: Sequence[str], attempt: int, note: str | None) -> str:
    notes = f"== without agreement: {note}\n" if note else ""
    return f"== attempt {attempt}, {utc_now()}, {socket.gethostname()}\n{notes}$ {shlex.join(line)}\n"


def _failure(returncode: int, folder: CellFolder) -> str:
    """Why a process failed, in one line: its last error message, if it said anything like that."""
    how = f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"exit status {returncode}"
    lines = _tail(folder.log)
    full = [line for line in lines if "No space left on device" in line or "Disk quota exceeded" in line]
    if full:
        return f"the disk is full ({how}): {full[-1][-300:]}"
    loud = [line for line in lines if _LOUD.search(line)]
    told = [line for line in lines if line.startswith("sparsemm")]
    message = (loud or told or [""])[-1]
    return f"{how}: {message[-500:]}" if message else f"{how}; see log.txt"


def _tail(path: Path) -> list[str]:
    """Lines of the last attempt, from the log's end."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _TAIL))
        text = file.read().decode(errors="replace")
    last = text.rpartition("\n== attempt ")[2]
    return [line.strip() for line in last.splitlines()[1:] if line.strip()]


def disk_text(error: OSError, folder: Path) -> str:
    """An error of writing, with what to do where the disk is full."""
    if not is_full(error):
        return f"{folder} cannot be written: {error}"
    return (
        f"the disk is full ({error.strerror}) at {folder}: make room and run the same command again; answers "
        "so far are in the journal"
    )
