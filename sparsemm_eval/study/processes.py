"""Processes of cells: started so that none outlives its runner, found and ended by a mark they carry."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

#: Environment variable with the token of the claim that a process works under.
MARK = "SPARSEMM_STUDY_CLAIM"
#: Seconds between asking a cell's processes to end and ending them.
GRACE = 15.0
_PROC = Path("/proc")


def start(
    line: Sequence[str], environment: Mapping[str, str], mark: str, log: BinaryIO
) -> subprocess.Popen[bytes]:
    """Start a command that ends when this process ends, in a session of its own.

    Parameters
    ----------
    line : sequence of str
    environment : mapping
        All of it.
    mark : str
        For `end_marked`.
    log : binary file
        Takes both output streams.
    """
    tied = [sys.executable, "-m", "sparsemm_eval.study.worker", str(os.getpid()), *line]
    return subprocess.Popen(
        tied,
        env={**environment, MARK: mark, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def end(child: subprocess.Popen[bytes], mark: str, grace: float = GRACE) -> None:
    """End a command and all that it has started."""
    if child.poll() is None:
        # It passes this on to lmms-eval, and torchrun to its ranks.
        _signal_group(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace)
    if child.poll() is None:
        _signal_group(child.pid, signal.SIGKILL)
    end_marked(mark, grace)
    child.wait()


def end_marked(mark: str, grace: float = GRACE) -> None:
    """End all processes of this machine that carry a mark; none where the system cannot say."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        found = marked(mark)
        _signal(found, number)
        if _wait(lambda: not marked(mark), grace if found else 0):
            return


def marked(mark: str) -> list[int]:
    """Pids of running processes with a mark in their environment."""
    wanted = f"{MARK}={mark}".encode()
    return [pid for pid in _pids() if pid != os.getpid() and wanted in _environment(pid)]


def machine() -> str:
    """Names this machine since its start, and this container on it: where pids mean the same."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append((_PROC / "sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink(_PROC / "self/ns/pid"))
    return " ".join(parts)


def started(pid: int) -> str | None:
    """When a process began, in the system's ticks; tells it from a later one of the same pid."""
    fields = _stat(pid)
    return fields[19] if fields else None


def is_running(pid: int, since: str | None) -> bool:
    """Whether that very process runs; one that has ended and was not waited for does not."""
    fields = _stat(pid)
    if fields is not None:
        return fields[0] not in ("Z", "X") and (since is None or fields[19] == since)
    if _PROC.joinpath("self/stat").exists():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the state on; the name before them may hold blanks and brackets."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _pids() -> Iterable[int]:
    if not _PROC.is_dir():
        return []
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal()]


def _environment(pid: int) -> list[bytes]:
    try:
        # Empty for those that have ended and were not waited for.
        return (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        # Gone, or somebody else's.
        return []


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _wait(reached: Callable[[], bool], patience: float) -> bool:
    deadline = time.monotonic() + patience
    while not reached():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    return True
