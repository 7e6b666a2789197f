"""A cell as flat W&B config, and its results as flat W&B summary."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from sparsemm_eval.study.json_values import plain

_FROM_CELL = (
    "study",
    "model",
    "model_name",
    "family",
    "pretrained",
    "method",
    "budget",
    "seed",
    "limit",
    "batch_size",
    "nproc",
)
_FROM_ROWS = (
    "budget",
    "seed",
    "window",
    "ratio",
    "kernel_size",
    "pooling",
    "gqa",
    "surplus",
    "config_hash",
    "head_scores_hash",
    "batch_size",
    "processes",
    "device_type",
    "dtype",
    "commit",
)
#: Figure -> how several tasks of one cell become one. Metrics differ between tasks, so scores do not.
_FIGURES = {
    "samples": sum,
    "skipped": sum,
    "effective_budget": fmean,
    "effective_budget_min": min,
    "effective_budget_max": max,
    "full_budget": fmean,
    "kv_bytes": fmean,
    "kv_bytes_full": fmean,
    "kv_share": fmean,
    "kv_bytes_peak": max,
    "kv_bytes_end": fmean,
    "prefill_seconds": fmean,
    "decode_seconds": fmean,
    "seconds": max,
    "agreement": fmean,
    "agreement_similarity": fmean,
    "attempts": max,
}
_OF_ONE_TASK = ("metric", "score", "stderr", "ci_low", "ci_high")
_SECRET = re.compile(r"token|secret|password|api_?key", re.IGNORECASE)


def cell_config(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Config of a run from its ``cell.json``: one key per knob, so that runs can be filtered and grouped.

    Keys whose name speaks of a secret are left out.
    """
    tasks = list(cell["tasks"])
    config = {name: cell.get(name) for name in _FROM_CELL}
    config |= dict(cell.get("knobs") or {})
    config |= {
        f"model_args.{name}": value
        for name, value in (cell.get("model_args") or {}).items()
        # Folders of this machine, not settings of the method.
        if name not in ("journal", "stats_dir", "reference")
    }
    config |= {
        "task": ",".join(tasks),
        "tasks": tasks,
        "cell": cell["id"],
        "cell_hash": cell["hash"],
        "config_hash": cell["hash"],
    }
    return {name: plain(value) for name, value in config.items() if not _SECRET.search(name)}


def rows_config(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Config that is known with the results: defaults, versions, hashes, where it ran."""
    if not rows:
        return {}
    row = rows[0]
    names = [name for name in row if name in _FROM_ROWS or name.startswith("version_")]
    found = {name: plain(row[name]) for name in names}
    return {name: _whole(value) for name, value in found.items() if value is not None}


def _whole(value: Any) -> Any:
    # A table with gaps holds integers as floats; runs are grouped by what the cell's description says.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summary of a run from its rows of the results table.

    ``<task>/<figure>`` and ``<task>/<metric>`` for each task. The figures also stand without a task: those of
    the only task, or over several tasks their mean (sum of samples, extreme of minimum, maximum and peak);
    scores only if there is one task.
    """
    found: dict[str, Any] = {}
    for row in rows:
        task = row["task"]
        values = {**_scores(row), **{name: row.get(name) for name in (*_OF_ONE_TASK, *_FIGURES)}}
        found |= {f"{task}/{name}": plain(value) for name, value in values.items()}
        if len(rows) == 1:
            found |= {name: plain(value) for name, value in values.items()}
    if len(rows) > 1:
        for name, together in _FIGURES.items():
            values = [value for value in (plain(row.get(name)) for row in rows) if value is not None]
            found[name] = together(values) if values else None
    return {name: value for name, value in found.items() if value is not None}


def _scores(row: Mapping[str, Any]) -> dict[str, Any]:
    scores = plain(row.get("scores"))
    if isinstance(scores, str):
        scores = json.loads(scores)
    return {name.partition(",")[0]: value for name, value in (scores or {}).items()}
