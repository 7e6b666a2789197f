"""Claims: one worker per cell, over processes and machines that share nothing but a file system."""

from __future__ import annotations

import os
import socket
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from sparsemm_eval.study import processes
from sparsemm_eval.study.folder import read_json, utc_now, write_json

#: Seconds between two heartbeats of a living claim.
HEARTBEAT = 10.0
#: A claim of another machine is dead after so many seconds without a heartbeat. Longer than the minute for
#: which NFS clients may show old file times.
EXPIRY = 120.0
_LOCK_PATIENCE = 60.0  # seconds; it is held for the moment of a look and a write


@dataclass(frozen=True)
class Claim:
    """A cell that is ours, until `release`.

    Attributes
    ----------
    folder : pathlib.Path
        Of the cell.
    token : str
        Known to nobody else; the processes of the cell carry it in their environment.
    """

    folder: Path
    token: str

    def beat(self) -> bool:
        """Say that we live. False: the claim was taken over, since we seemed dead."""
        with _lock(self.folder):
            if not self._is_ours():
                return False
            # Only a time changes: it works on a full disk too.
            os.utime(_file(self.folder))
            return True

    def note(self, **facts: Any) -> None:
        """Add facts to ``claim.json``, for instance the pid of the cell's process."""
        with _lock(self.folder):
            if self._is_ours():
                write_json(_file(self.folder), {**(read_json(_file(self.folder)) or {}), **facts})

    def release(self) -> None:
        """Give the cell back."""
        with _lock(self.folder):
            if self._is_ours():
                _file(self.folder).unlink()

    def give_back(self) -> None:
        """As `release`, when all else is done: a failure is told, and the claim expires by itself."""
        try:
            self.release()
        except OSError as error:
            print(f"{self.folder}: the claim was not given back: {error}", file=sys.stderr, flush=True)

    def _is_ours(self) -> bool:
        return (read_json(_file(self.folder)) or {}).get("token") == self.token


def acquire(folder: Path, expiry: float = EXPIRY) -> Claim | None:
    """Claim a cell; None if somebody living has it.

    What a dead owner on this machine has left running is ended first: two processes would fight for the
    cell's journal.

    Parameters
    ----------
    folder : pathlib.Path
        Of the cell.
    expiry : float
        Seconds without a heartbeat after which a claim of another machine is dead.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        holder = read_json(_file(folder))
        if holder is not None:
            if _is_alive(holder, folder, expiry):
                return None
            processes.end_marked(holder["token"])
        claim = Claim(folder, uuid.uuid4().hex)
        write_json(_file(folder), {"token": claim.token, **_self(), "claimed": utc_now()})
        return claim


def holder(folder: Path, expiry: float = EXPIRY) -> dict[str, Any] | None:
    """Who works on a cell; None if nobody living does."""
    if not _file(folder).is_file():
        return None
    with _lock(folder):
        record = read_json(_file(folder))
        return record if record is not None and _is_alive(record, folder, expiry) else None


def _is_alive(record: Mapping[str, Any], folder: Path, expiry: float) -> bool:
    if record.get("machine") == processes.machine():
        return processes.is_running(record["pid"], record["started"])
    # Both times are the file server's: clocks of machines may differ.
    lock = folder / "claim.lock"
    os.utime(lock)
    return lock.stat().st_mtime - _file(folder).stat().st_mtime < expiry


def _self() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "machine": processes.machine(),
        "pid": pid,
        "started": processes.started(pid),
    }


def _file(folder: Path) -> Path:
    return folder / "claim.json"


def _lock(folder: Path) -> filelock.BaseFileLock:
    return filelock.FileLock(str(folder / "claim.lock"), timeout=_LOCK_PATIENCE, is_singleton=False)
