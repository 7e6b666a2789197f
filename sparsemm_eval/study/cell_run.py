"""One cell from its lock to its status: attempts, log, results, W&B."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from sparsemm_eval.errors import EvaluationError
from sparsemm_eval.lmms import results as lmms_results
from sparsemm_eval.lmms.arguments import read
from sparsemm_eval.lmms.tied import tied
from sparsemm_eval.study import wandb_runs
from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.folder import CellFolder, StudyFolder, is_full, utc_now

#: ``(cell, lmms-eval's arguments, processes) -> command line``.
Command = Callable[[Cell, Sequence[str], int], list[str]]
#: Seconds between asking a cell's processes to end and ending them.
GRACE = 15.0
#: Seconds between two notes of the time spent so far, which a killed runner leaves behind.
NOTE_EVERY = 30.0
_TAIL = 64 * 1024  # bytes of a log that are searched for what went wrong
_LOUD = re.compile(r"\b[A-Za-z_.]*(?:Error|Exception|Interrupt)\b\s*:\s*\S")


class Interrupted(Exception):
    """The runner is asked to end; the cell goes on from its journal another time."""


def sparsemm_eval_command(cell: Cell, arguments: Sequence[str], nproc: int) -> list[str]:
    """The command of a cell: ``sparsemm eval`` with this Python."""
    return [sys.executable, "-m", "sparsemm_eval", "eval", "--nproc", str(nproc), *arguments]


@dataclass(frozen=True)
class How:
    """How cells are run; nothing here changes a result."""

    retries: int = 1  # further attempts of a failing cell
    nproc: int = 1  # processes per cell
    wandb: str = "disabled"  # where W&B runs go: disabled, offline or online
    command: Command = sparsemm_eval_command
    #: Additions for this worker's cells, for instance CUDA_VISIBLE_DEVICES.
    environment: Mapping[str, str] = field(default_factory=dict)
    poll: float = 0.5  # seconds between two looks at a running process
    pause: float = 2.0  # seconds before another attempt


class CellRun:
    """One cell, run until it is done or has no attempts left.

    ``lock`` is the file descriptor of the cell's lock, which its process inherits; ``afresh`` forgets the
    attempts before.
    """

    def __init__(
        self, study: StudyFolder, cell: Cell, lock: int, how: How, stop: threading.Event, afresh: bool = False
    ):
        self.study, self.cell, self.lock, self.how, self.stop = study, cell, lock, how, stop
        self.folder: CellFolder = study.cell(cell.id)
        self.began = time.monotonic()
        before = self.folder.status()
        same = before.get("hash") == cell.hash
        self.before = before.get("seconds") or 0.0 if same else 0.0
        self.status: dict[str, Any] = {
            "state": "running",
            "attempts": before.get("attempts", 0) if same and not afresh else 0,
            "started": utc_now(),
            "ended": None,
            "seconds": None,
            "returncode": None,
            "error": None,
            "results": None,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "hash": cell.hash,
            "identity": dict(cell.identity),
            "documents": None,
        }

    def run(self) -> dict[str, Any]:
        """Run the cell; returns its last status. On a full disk it may be known here only.

        Raises
        ------
        Interrupted
            When `stop` is set; the cell's processes are gone then.
        """
        try:
            self._until_settled()
        except OSError as error:
            self.status["error"] = disk_text(error, self.folder.root)
            # What is on disk may stay as it was, whole: the cell will be resumed from its journal.
            with contextlib.suppress(OSError):
                self._settle("failed")
        outcome = wandb_runs.log(self.how.wandb, self.study.root, self.cell.id)
        if outcome is not None:
            self.status["wandb"] = outcome
            # On a full disk the status that was written before counts.
            with contextlib.suppress(OSError):
                self.folder.write_status(self.status)
        return self.status

    def _until_settled(self) -> None:
        while True:
            done = self._attempt()
            if done or self.status["attempts"] > self.how.retries:
                self._settle("done" if done else "failed")
                return
            self._write()
            if self.stop.wait(self.how.pause):
                raise Interrupted

    def _settle(self, state: str) -> None:
        self.status.update(state=state, ended=utc_now())
        self._write()

    def _write(self) -> None:
        self.status["seconds"] = round(self.before + time.monotonic() - self.began, 3)
        self.folder.write_status(self.status)

    def _attempt(self) -> bool:
        self.status.update(returncode=None, error=None)
        self._write()
        self.folder.clear_results()
        arguments = self.cell.arguments(self.folder.root)
        returncode = self._process(arguments)
        # An attempt counts when it has ended by itself: a killed runner costs a cell nothing.
        self.status.update(returncode=returncode, attempts=self.status["attempts"] + 1)
        if returncode:
            self.status["error"] = _failure(returncode, self.folder)
            return False
        try:
            [asked] = read(arguments)
            found = lmms_results.find(asked, {})
        except EvaluationError as error:
            self.status["error"] = str(error)
            return False
        self.status["results"] = str(found.path.relative_to(self.folder.root))
        self.status["documents"] = _documents(found)
        return True

    def _process(self, arguments: Sequence[str]) -> int:
        line = self.how.command(self.cell, arguments, self.how.nproc)
        attempt = f"== attempt {self.status['attempts'] + 1}, {utc_now()}, {socket.gethostname()}"
        with self.folder.log.open("ab") as log:
            log.write(f"{attempt}\n$ {shlex.join(line)}\n".encode())
            log.flush()
            child = subprocess.Popen(
                tied(line),
                env={**os.environ, **self.how.environment, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(self.lock,),
            )
            try:
                self._watch(child)
            finally:
                # Also when this process is to end, or has an error of its own.
                _end(child)
            return child.returncode

    def _watch(self, child: subprocess.Popen[bytes]) -> None:
        noted = time.monotonic()
        while child.poll() is None:
            if self.stop.wait(self.how.poll):
                raise Interrupted
            if time.monotonic() - noted >= NOTE_EVERY:
                noted = time.monotonic()
                self._write()


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a command and all that it has started."""
    if child.poll() is not None:
        return
    family = []
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(child.pid).children(recursive=True)
    # It passes this on to lmms-eval, and torchrun to its ranks.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    for process in family:
        with contextlib.suppress(psutil.Error):
            process.kill()
    child.wait()


def _documents(found: lmms_results.ResultsFile) -> int | None:
    """Documents that were scored, over all tasks; None where lmms-eval does not say."""
    counts = found.contents.get("n-samples") or {}
    numbers = [entry.get("effective") for entry in counts.values() if isinstance(entry, Mapping)]
    return sum(numbers) if numbers and all(isinstance(number, int) for number in numbers) else None


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
