"""A study's folder: where everything lies, and who may write a study into it."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from sparsemm_eval.errors import ConfigError, EvaluationError
from sparsemm_eval.files import write_text_atomically
from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.settings import Study

#: Settings that may change between runs of one study: they say how it is run, not what.
FREE = ("nproc", "retries", "wandb")
_LOCK_PATIENCE = 120.0  # seconds; it is held for as long as the cells' records are written


class StudyFolder:
    """Paths of one study.

    Parameters
    ----------
    root : path-like
    """

    def __init__(self, root: str | Path):
        self.root = Path(root).resolve()
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
        record = read_json(self.record)
        if record is None:
            raise ConfigError(
                "study folder", str(self.root), "a folder that `sparsemm study run study.yaml` has written"
            )
        return record

    def cells(self) -> list[Cell]:
        """The study's cells, in the order in which they run."""
        cells = []
        for identifier in self.settings()["cells"]:
            record = read_json(self.cell(identifier).record)
            if record is None:
                raise EvaluationError(f"{self.cell(identifier).record} is missing: run the study again")
            cells.append(Cell.from_record(record))
        return cells

    def prepare(self, study: Study, cells: Sequence[Cell]) -> None:
        """Write a study's records, or make sure that the same study is there.

        Raises
        ------
        ConfigError
            If the folder holds another study; the message says what differs.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        # Held for these records only: any number of runners of one study work side by side, by claims.
        lock = filelock.FileLock(str(self.root / "study.lock"), timeout=_LOCK_PATIENCE)
        with lock:
            known = self.refuse_other(study, cells)
            for cell in cells:
                folder = self.cell(cell.id)
                reference = self.cell(cell.reference).journal if cell.reference else None
                if read_json(folder.record) is None:
                    write_json(folder.record, cell.record(folder.root, reference))
            self._keep_source(Path(study.document.file))
            created = known["created"] if known else utc_now()
            identifiers = [cell.id for cell in cells]
            record = {
                "name": study.name,
                "created": created,
                "settings": study.record(),
                "cells": identifiers,
            }
            if record != known:
                write_json(self.record, record)

    def _keep_source(self, source: Path) -> None:
        copy = self.root / "study.yaml"
        if not source.is_file():
            return
        text = source.read_text(encoding="utf-8")
        if not copy.is_file() or copy.read_text(encoding="utf-8") != text:
            write_text_atomically(copy, text)

    def refuse_other(self, study: Study, cells: Sequence[Cell]) -> dict[str, Any] | None:
        """Make sure that the folder holds no other study; returns what it holds of this one.

        Raises
        ------
        ConfigError
            If it does; the message says what differs.
        """
        known = read_json(self.record)
        if known is None:
            return None
        # Through JSON, as what is there.
        before, here = known["settings"], json.loads(json.dumps(study.record()))
        differing = [
            f"{name}: {json.dumps(before.get(name))} there, {json.dumps(here.get(name))} here"
            for name in dict.fromkeys([*before, *here])
            if name not in FREE and before.get(name) != here.get(name)
        ]
        changed = [cell.id for cell in cells if cell.id not in known["cells"]]
        if changed and not differing:
            differing = [f"the content of its head scores: {changed[0]} is new"]
        if differing:
            raise ConfigError(
                "output",
                str(self.root),
                "a folder without another study; this one holds a study that differs in "
                + "; ".join(differing)
                + ". Give this study another output, or remove the folder",
            )
        return known


class CellFolder:
    """Paths of one cell, and its status.

    Parameters
    ----------
    root : pathlib.Path
    """

    def __init__(self, root: Path):
        self.root = root
        self.record = root / "cell.json"
        self.status_file = root / "status.json"
        self.log = root / "log.txt"
        self.journal = root / "journal"
        self.stats = root / "stats"
        self.lmms = root / "lmms"

    def status(self) -> dict[str, Any]:
        """``status.json``; empty for a cell that nobody has started."""
        return read_json(self.status_file) or {}

    def write_status(self, status: Mapping[str, Any]) -> None:
        """Replace the status in one step."""
        write_json(self.status_file, status)

    def is_done(self, digest: str) -> bool:
        """Whether the cell has its results, and they are those of these settings."""
        status = self.status()
        results = status.get("results")
        return (
            status.get("state") == "done"
            and status.get("hash") == digest
            and results is not None
            and (self.root / results).is_file()
        )

    def answers(self) -> int:
        """Answers in the journal."""
        return sum(_lines(path) for path in self.journal.glob("*/rank-*.jsonl"))

    def clear_results(self) -> None:
        """Remove what an attempt before has left beside the journal, so that results are those of one run."""
        for folder in (self.stats, self.lmms):
            shutil.rmtree(folder, ignore_errors=True)

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file; None where there is none."""
    try:
        return json.loads(_text(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise EvaluationError(f"{path} is damaged ({error}): remove it and run the study again") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        # Over NFS: another machine has replaced the file while it was being opened.
        return path.read_text(encoding="utf-8")


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON file as a whole: readers see the old one or the new one."""
    write_text_atomically(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def utc_now() -> str:
    """ISO time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_full(error: OSError) -> bool:
    """Whether an error says that there is no room: disk full, quota or file size limit."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _lines(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except OSError:
        # It is for a progress display, and the file may just be going.
        return 0
