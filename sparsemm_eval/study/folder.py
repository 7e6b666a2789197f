"""A study's folder: where everything lies, what stands in it, and who works on which cell."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsemm_eval.errors import ConfigError, EvaluationError
from sparsemm_eval.files import FileLock, users_path, write_json_atomically, write_text_atomically
from sparsemm_eval.study.cell import Cell

if TYPE_CHECKING:
    from sparsemm_eval.study.study_file import Study

#: Of study.json.
STUDY_KEYS = ("name", "created", "settings", "cells")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LOCK_PATIENCE = 120.0  # seconds; it is held for as long as the cells' records are written


class StudyFolder:
    """Paths of one study."""

    def __init__(self, root: str | Path):
        self.root = users_path(str(root)).resolve()
        self.record = self.root / "study.json"

    def cell(self, identifier: str) -> CellFolder:
        """The folder of a cell."""
        return CellFolder(self.root / "cells" / identifier)

    def settings(self) -> dict[str, Any]:
        """``study.json``.

        Raises
        ------
        ConfigError
            If the folder holds no study.
        """
        record = read_json(self.record, STUDY_KEYS)
        if record is None:
            remedy = "a folder that `sparsemm study run study.yaml` has written"
            raise ConfigError("study folder", str(self.root), remedy)
        return record

    def cells(self) -> list[Cell]:
        """The cells of the study as its file was last read, in the order in which they run."""
        return [Cell.from_record(self.cell(name).description()) for name in self.settings()["cells"]]

    def others(self) -> list[str]:
        """Ids of cells that lie here, and that the study's file no more names."""
        known = set(self.settings()["cells"])
        return sorted(
            path.parent.name for path in self.root.glob("cells/*/cell.json") if path.parent.name not in known
        )

    def prepare(self, study: Study, cells: Sequence[Cell]) -> None:
        """Write a study's records; a study grows by writing it again.

        Raises
        ------
        ConfigError
            If the folder holds a study of another name.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        # Held for these records only: any number of runners of one study work side by side.
        with FileLock(str(self.root / "study.lock"), timeout=_LOCK_PATIENCE):
            known = self.refuse_other(study)
            for cell in cells:
                folder = self.cell(cell.id)
                _put(folder.record, _json(cell.record(folder.root)))
            source = Path(study.document.file)
            if source.is_file():
                _put(self.root / "study.yaml", source.read_text(encoding="utf-8"))
            created = known["created"] if known else utc_now()
            settings = {"name": study.name, "created": created, "settings": study.record()}
            record = {**settings, "cells": [cell.id for cell in cells]}
            _put(self.record, _json(record))

    def refuse_other(self, study: Study) -> dict[str, Any] | None:
        """What the folder holds of this study.

        Raises
        ------
        ConfigError
            If it holds a study of another name.
        """
        known = read_json(self.record, STUDY_KEYS)
        if known is not None and known["name"] != study.name:
            remedy = f"a folder without another study; this one holds {known['name']!r}"
            raise ConfigError("output", str(self.root), remedy)
        return known


class CellFolder:
    """Paths of one cell, its status, and the lock of whoever works on it."""

    def __init__(self, root: Path):
        self.root = root
        self.record = root / "cell.json"
        self.log = root / "log.txt"
        self.lock = root / "lock"
        self.journal = root / "journal"

    def description(self) -> dict[str, Any]:
        """``cell.json``.

        Raises
        ------
        EvaluationError
            If it is missing or broken.
        """
        record = read_json(self.record, Cell.__dataclass_fields__)
        if record is None:
            raise EvaluationError(f"{self.record} is missing: run the study again")
        return record

    def status(self) -> dict[str, Any]:
        """``status.json``; empty for a cell that nobody has started."""
        return read_json(self.root / "status.json", ("state",)) or {}

    def write_status(self, status: Mapping[str, Any]) -> None:
        """Replace the status in one step."""
        write_json_atomically(self.root / "status.json", status)

    def state(self, digest: str, status: Mapping[str, Any]) -> str:
        """Where a cell of this status stands, given the hash it should have: one of `display.STATES`."""
        if status.get("state") == "done" and self.has_results(status):
            return "done" if status.get("hash") == digest else "stale"
        if self.holder() is not None:
            return "running"
        return {"failed": "failed", None: "pending"}.get(status.get("state"), "interrupted")

    def has_results(self, status: Mapping[str, Any]) -> bool:
        """Whether the results that a status names are there."""
        return status.get("results") is not None and (self.root / status["results"]).is_file()

    @contextlib.contextmanager
    def owned(self) -> Iterator[int | None]:
        """Hold the cell's lock while inside; yields its file descriptor, or None if somebody has it.

        Processes that are given the descriptor hold the lock as well: it is free when all of them have ended,
        however they did.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield descriptor
        finally:
            os.close(descriptor)

    def holder(self) -> str | None:
        """Who works on the cell, in words; None if nobody does."""
        try:
            with self.lock.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    return None
                except BlockingIOError:
                    return file.read().decode() or "another process"
        except FileNotFoundError:
            return None

    def answers(self) -> int:
        """Answers in the journal."""
        count = 0
        for path in self.journal.glob("*/rank-*.jsonl"):
            # It is for a progress display, and the file may just be going.
            with contextlib.suppress(OSError):
                count += path.read_bytes().count(b"\n")
        return count

    def clear_results(self) -> None:
        """Remove what an attempt before has left beside the journal, so that results are those of one run."""
        for name in ("stats", "lmms"):
            shutil.rmtree(self.root / name, ignore_errors=True)

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())


def read_json(path: Path, needed: Iterable[str] = ()) -> dict[str, Any] | None:
    """A JSON file's mapping; None where there is none.

    Raises
    ------
    EvaluationError
        If it is damaged, or has none of what is needed.
    """
    for _ in range(2):
        try:
            found = json.loads(path.read_text(encoding="utf-8"), object_hook=harmless)
            return having(found, needed)
        except FileNotFoundError:
            return None
        except OSError as error:
            # Over NFS: another machine has replaced the file while it was being opened.
            if error.errno != errno.ESTALE:
                raise
        except (ValueError, RecursionError) as error:
            raise EvaluationError(
                f"{path} is damaged ({error}): remove it and run the study again"
            ) from error
    raise EvaluationError(f"{path} is replaced again and again by another machine")


def having(record: Any, needed: Iterable[str]) -> dict[str, Any]:
    """A mapping with these keys.

    Raises
    ------
    ValueError
        If it is none.
    """
    if not isinstance(record, dict):
        raise ValueError(f"no mapping: {str(record)[:40]}")
    missing = [name for name in needed if name not in record]
    if missing:
        raise ValueError(f"without {', '.join(missing)}")
    return record


def _put(path: Path, text: str) -> None:
    """Write what is not there already: going on must be possible on a full disk."""
    if not (path.is_file() and path.read_bytes() == text.encode()):
        write_text_atomically(path, text)


def _json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def harmless(record: dict[str, Any]) -> dict[str, Any]:
    """Texts without control characters: a terminal that prints them would obey them."""
    return {
        name: _CONTROL.sub("�", value) if isinstance(value, str) else value for name, value in record.items()
    }


def utc_now() -> str:
    """ISO time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_full(error: OSError) -> bool:
    """Whether an error says that there is no room: disk full, quota or file size limit."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
