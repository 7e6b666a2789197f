"""What a cell has left on disk: its description, its state, lmms-eval's results and the wrapper's samples."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsemm_eval.errors import EvaluationError
from sparsemm_eval.lmms.results import ResultsFile

_RUN_SUFFIX = "_sparsemm_run.json"
_SAMPLES = "_sparsemm_samples.rank*.jsonl"
_RESULTS_SUFFIX = "_results.json"


@dataclass(frozen=True)
class CellFiles:
    """One cell as it lies in a study folder.

    Attributes
    ----------
    folder : pathlib.Path
    cell : dict
        ``cell.json``.
    status : dict
        ``status.json``; ``{"state": "pending"}`` before the cell has begun. A cell whose results cannot
        be read is ``failed``, whatever it says itself.
    results : ResultsFile or None
        Of a finished cell.
    """

    folder: Path
    cell: dict[str, Any]
    status: dict[str, Any]
    results: ResultsFile | None = None
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def done(self) -> bool:
        """Whether there are results."""
        return self.results is not None

    @property
    def record(self) -> dict[str, Any]:
        """The wrapper's run record, empty without results or where none was asked for."""
        return {} if self.results is None else self.results.contents.get("sparsemm", {})

    @property
    def tasks(self) -> list[str]:
        """Tasks with their own row: groups resolved where results tell the members."""
        names = self.cell["tasks"]
        if self.results is None:
            return list(names)
        return list(dict.fromkeys(task for name in names for task in self.results.tasks_of(name) or [name]))

    def logged(self, task: str) -> list[dict[str, Any]]:
        """lmms-eval's per-sample records of a task by ``doc_id``; empty where none were logged."""
        if self.results is None:
            return []
        path = self.results.path
        stem = path.name.removesuffix(_RESULTS_SUFFIX)
        return sorted(_lines(path.with_name(f"{stem}_samples_{task}.jsonl")), key=lambda row: row["doc_id"])

    def measured(self, task: str) -> dict[int, dict[str, Any]]:
        """The wrapper's per-sample figures of a task by ``doc_id``, first answer of each."""
        if "measured" not in self._cache:
            self._cache["measured"] = self._read_measured()
        return self._cache["measured"].get(task, {})

    def _read_measured(self) -> dict[str, dict[int, dict[str, Any]]]:
        if "path" not in self.record:
            return {}
        # Only the name: the folder may have moved since. Earlier attempts have files of other names.
        stem = Path(self.record["path"]).name.removesuffix(_RUN_SUFFIX)
        tasks: dict[str, dict[int, dict[str, Any]]] = {}
        for path in sorted((self.folder / "stats").glob(stem + _SAMPLES)):
            for row in _lines(path):
                if row.get("repeat", 0) == 0:
                    tasks.setdefault(row["task"], {})[row["doc_id"]] = row
        return tasks


def read_study(folder: Path, only: Collection[str] | None = None) -> list[CellFiles]:
    """The cells of a study in its order, or those of them with the ids that are given.

    Raises
    ------
    EvaluationError
        If the folder is no study, or a cell has no readable description.
    """
    description = folder / "study.json"
    if not description.is_file():
        raise EvaluationError(
            f"{folder} is no study folder: it has no study.json (`sparsemm study run` makes it)"
        )
    names = _json(description)["cells"]
    return [read_cell(folder / "cells" / name) for name in names if only is None or name in only]


def read_cell(folder: Path) -> CellFiles:
    """One cell.

    Raises
    ------
    EvaluationError
        If ``cell.json`` is missing or broken.
    """
    cell = _json(folder / "cell.json")
    path = folder / "status.json"
    status = _json(path) if path.is_file() else {"state": "pending"}
    if status["state"] != "done":
        return CellFiles(folder, cell, status)
    try:
        file = folder / (status.get("results") or "no results")
        return CellFiles(folder, cell, status, ResultsFile(file, _json(file)))
    except EvaluationError as error:
        return CellFiles(folder, cell, {**status, "state": "failed", "error": str(error)})


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} cannot be read: {error}") from error


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise EvaluationError(f"{path} is not a complete file of samples: {error}") from error
