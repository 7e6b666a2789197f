"""Results files of lmms-eval: which are new, whether they have all scores, and which run made them."""

from __future__ import annotations

import fnmatch
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path
from typing import Any

from sparsemm_eval.errors import EvaluationError
from sparsemm_eval.lmms.arguments import Run

_NOT_SCORES = ("alias", "samples", " ")
_STANDARD_ERROR = "_stderr"
# Named after date and time; some tasks write other files ending in _results.json below the output path.
_FILE_NAME = "[0-9]" * 8 + "_" + "[0-9]" * 6 + "_results.json"
_STATS_DIR = re.compile(r"(?:^|,)stats_dir=([^,]+)")


@dataclass(frozen=True)
class ResultsFile:
    """One ``…_results.json`` of lmms-eval, and its contents as upstream wrote them."""

    path: Path
    contents: dict[str, Any]

    def scores(self, task: str) -> dict[str, float]:
        """Finite scores of a task by metric name, without standard errors; empty if it has none."""
        return {name: value for name, value in self._figures(task).items() if _STANDARD_ERROR not in name}

    def errors(self, task: str) -> dict[str, float]:
        """Standard errors of a task's scores by metric name, where lmms-eval gives numbers."""
        known = self._figures(task)
        ends = [name for name in known if name.endswith(_STANDARD_ERROR)]
        return {name.removesuffix(_STANDARD_ERROR): known[name] for name in ends}

    def _figures(self, task: str) -> dict[str, float]:
        return {
            name.partition(",")[0]: float(value)
            for name, value in self.contents.get("results", {}).get(task, {}).items()
            if name not in _NOT_SCORES and _is_finite(value)
        }

    def tasks_of(self, name: str) -> list[str]:
        """Tasks here that the name of a task, group, tag, pattern, or a folder of YAML files stands for."""
        results = self.contents.get("results", {})
        if Path(name).is_dir():
            return list(results)
        groups = self.contents.get("group_subtasks", {})
        if groups.get(name):
            return [task for member in groups[name] for task in self.tasks_of(member) or [member]]
        if name in results:
            return [name]
        tagged = [task for task, config in self.contents.get("configs", {}).items() if name in _tags(config)]
        return tagged or fnmatch.filter((task for task in results if not groups.get(task)), name)


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    """Results files below an output path, with time of change and size to tell whether one is rewritten."""
    # lmms-eval writes to <output path>/<model name>/, or directly there where the model has no name.
    found = [path for pattern in (_FILE_NAME, f"*/{_FILE_NAME}") for path in folder.glob(pattern)]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


def find(run: Run, before: dict[Path, tuple[int, int]]) -> ResultsFile:
    """The results that a run has left since the `snapshot` of its output path.

    Raises
    ------
    EvaluationError
        If there are no new results of this model, or a task lacks a score.
    """
    new = [path for path, stamp in snapshot(run.output_path).items() if before.get(path) != stamp]
    files = [file for file in map(_load, sorted(new)) if _is_of(file, run)]
    if not files:
        raise EvaluationError(
            f"lmms-eval wrote no results for {', '.join(run.tasks)} to {run.output_path}: the evaluation "
            "failed, though its exit status does not say so; see the messages above"
        )
    missing = {file.path: list(_missing(file, run.tasks)) for file in files}
    complete = [file for file in files if not missing[file.path]]
    if not complete:
        path, names = next(iter(missing.items()))
        raise EvaluationError(f"{path} has no score for {', '.join(names)}; see the messages above")
    return complete[-1]


def with_record(file: ResultsFile, run: Run) -> ResultsFile:
    """Put the wrapper's run record into the results file, under the key ``sparsemm``.

    Unchanged if the run did not ask for a record with ``stats_dir=…`` in its model_args. A record names the
    results file it belongs to.

    Raises
    ------
    EvaluationError
        If the record is missing, or counts fewer answers than were scored.
    """
    asked = _STATS_DIR.search(run.model_args)
    if asked is None:
        return file
    # lmms-eval takes seconds to import, and most runs need nothing of it here.
    from sparsemm_eval.model_wrappers.records.run_record import complete_results, read_runs

    own = str(file.path.absolute())
    records = [record for record in read_runs(expanduser(asked[1])) if record["results_file"] == own]
    if not records:
        raise EvaluationError(f"{run.model} left no run record in stats_dir={asked[1]} for {own}")
    return ResultsFile(file.path, complete_results(file.path, records[-1]))


def _load(path: Path) -> ResultsFile:
    try:
        return ResultsFile(path, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} is not a complete results file: {error}") from error


def _is_of(file: ResultsFile, run: Run) -> bool:
    config = file.contents.get("config", {})
    # Other runs may write to the same folder at the same time. Upstream blanks out secrets in model_args.
    same_model = run.model is None or config.get("model") == run.model
    arguments = config.get("model_args")
    return same_model and (str(arguments) == run.model_args or "[REDACTED]" in str(arguments))


def _missing(file: ResultsFile, names: Iterable[str]) -> Iterable[str]:
    for name in names:
        tasks = file.tasks_of(name)
        if not tasks:
            yield name
        yield from (task for task in tasks if not file.scores(task))


def _tags(config: dict[str, Any]) -> list[str]:
    tags = config.get("tag") or []
    return [tags] if isinstance(tags, str) else list(tags)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
