"""Processes of cells: started so that none outlives its runner, found and ended by a mark they carry."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import psutil

from sparsemm_eval.lmms.tied import tied

#: Environment variable with the token of the claim that a process works under.
MARK = "SPARSEMM_STUDY_CLAIM"
#: Seconds between asking a cell's processes to end and ending them.
GRACE = 15.0


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
    return subprocess.Popen(
        tied(line),
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
    """End all processes of this machine that carry a mark."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        found = marked(mark)
        _signal(found, number)
        if _wait(lambda: not marked(mark), grace if found else 0):
            return


def marked(mark: str) -> list[int]:
    """Pids of running processes with a mark in their environment, as far as they let it be read."""
    processes = psutil.process_iter(["environ"])
    found = [process.pid for process in processes if (process.info["environ"] or {}).get(MARK) == mark]
    return [pid for pid in found if pid != os.getpid()]


def machine() -> str:
    """Names this machine since its start, and this container on it: where pids mean the same."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux alone says so
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def started(pid: int) -> str | None:
    """When a process began, in hundredths of a second since the machine did; None if there is none.

    It tells a process from a later one of the same pid, also when the clock is set in between.
    """
    try:
        boot = psutil.boot_time()
        return str(round(100 * (psutil.Process(pid).create_time() - boot)))
    except psutil.NoSuchProcess:
        return None


def is_running(pid: int, since: str | None) -> bool:
    """Whether that very process runs; one that has ended and was not waited for does not."""
    try:
        status = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return False
    ended = status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return not ended and (since is None or started(pid) == since)


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
