"""What a cell has left on disk: its description, its state, lmms-eval's results and the wrapper's samples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sparsemm_eval.errors import EvaluationError
from sparsemm_eval.lmms.arguments import task_name
from sparsemm_eval.lmms.results import ResultsFile
from sparsemm_eval.study.folder import STUDY_KEYS, CellFolder, harmless, having, read_json
from sparsemm_eval.study.method_knobs import is_reference

_RUN_SUFFIX = "_sparsemm_run.json"
_SAMPLES = "_sparsemm_samples.rank*.jsonl"
_RESULTS_SUFFIX = "_results.json"


@dataclass(frozen=True)
class CellFiles:
    """One cell as it lies in a study folder."""

    folder: Path
    cell: dict[str, Any]  # ``cell.json``
    #: ``status.json`` with one of `display.STATES`. A cell without its results is ``failed``, whatever it
    #: says itself.
    status: dict[str, Any]

    @property
    def done(self) -> bool:
        """Whether there are results."""
        return self.status["state"] == "done"

    @cached_property
    def results(self) -> ResultsFile | None:
        """Of a finished cell.

        Raises
        ------
        EvaluationError
            If they cannot be read.
        """
        if not self.done:
            return None
        path = _below(self.folder, self.status["results"])
        return ResultsFile(path, read_json(path))

    def failed(self, error: Exception) -> CellFiles:
        """The cell as one whose results cannot be read."""
        return replace(self, status={**self.status, "state": "failed", "error": str(error)})

    @property
    def is_reference(self) -> bool:
        """Whether others are compared with it: nothing is evicted or pruned, and no head is masked."""
        return is_reference(self.cell["method"], self.cell["model_args"])

    @property
    def comparison(self) -> str:
        """Equal for a cell and the FullKV cell that it is compared with."""
        cell = self.cell
        return json.dumps([cell["comparison"], cell["tasks"], cell["limit"]], sort_keys=True)

    @property
    def attempt(self) -> list[Any]:
        """Names the attempt that the results are of."""
        return [self.cell["id"], self.cell["hash"], self.status.get("started"), self.status.get("results")]

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
        names = [task_name(name) for name in names]
        return list(dict.fromkeys(task for name in names for task in self.results.tasks_of(name) or [name]))

    def logged(self, task: str) -> list[dict[str, Any]]:
        """lmms-eval's per-sample records of a task by ``doc_id``; empty where none were logged."""
        if self.results is None:
            return []
        path = self.results.path
        stem = path.name.removesuffix(_RESULTS_SUFFIX)
        rows = _lines(path.with_name(f"{stem}_samples_{task}.jsonl"), ("doc_id",))
        return sorted(rows, key=lambda row: row["doc_id"])

    def measured(self, task: str) -> dict[int, dict[str, Any]]:
        """The wrapper's per-sample figures of a task by ``doc_id``, first answer of each."""
        return self._measured.get(task, {})

    @cached_property
    def _measured(self) -> dict[str, dict[int, dict[str, Any]]]:
        if "path" not in self.record:
            return {}
        # Only the name: the folder may have moved since. Earlier attempts have files of other names.
        stem = Path(self.record["path"]).name.removesuffix(_RUN_SUFFIX)
        tasks: dict[str, dict[int, dict[str, Any]]] = {}
        for path in sorted((self.folder / "stats").glob(stem + _SAMPLES)):
            for row in _lines(path, ("task", "doc_id")):
                if row.get("repeat", 0) == 0:
                    tasks.setdefault(row["task"], {})[row["doc_id"]] = row
        return tasks


def read_study(folder: Path) -> list[CellFiles]:
    """The cells of a study in its order.

    Raises
    ------
    EvaluationError
        If the folder is no study, or a cell has no readable description.
    """
    description = read_json(folder / "study.json", STUDY_KEYS)
    if description is None:
        raise EvaluationError(
            f"{folder} is no study folder: it has no study.json (`sparsemm study run` makes it)"
        )
    return [read_cell(_below(folder / "cells", name)) for name in description["cells"]]


def read_cell(folder: Path) -> CellFiles:
    """One cell.

    Raises
    ------
    EvaluationError
        If ``cell.json`` is missing or broken.
    """
    place = CellFolder(folder)
    cell, status = place.description(), place.status()
    state = place.state(cell["hash"], status)
    error = stale_text(status, cell["identity"]) if state == "stale" else status.get("error")
    files = CellFiles(folder, cell, {**status, "state": state, "error": error})
    results = status.get("results") or "no results"
    if status.get("state") == "done" and not _below(folder, results).is_file():
        return files.failed(EvaluationError(f"{folder / results} is missing"))
    try:
        _ = files.results
    except EvaluationError as error:
        return files.failed(error)
    return files


def stale_text(status: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """What has changed since a cell was done."""
    before = status.get("identity") or {}
    changed = [name for name, value in identity.items() if before.get(name) != value]
    return f"done before a change of {', '.join(changed) or 'what it depends on'}; it will be run again"


def _below(folder: Path, name: str) -> Path:
    """A file of a folder; a study of somebody else may name any."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise EvaluationError(f"{name} is not below {folder}")
    return path


def _lines(path: Path, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        return [
            having(json.loads(line, object_hook=harmless), needed)
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{path} is not a complete file of samples: {error}") from error
