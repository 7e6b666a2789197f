"""A cell as flat W&B config, to filter and group runs by, and its results as flat W&B summary."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sparsemm_eval.study import columns
from sparsemm_eval.study.columns import KNOBS, VERSIONS
from sparsemm_eval.study.json_values import canonical, plain

_FROM_CELL = (
    *("study", "model", "model_name", "family", "pretrained", "method", "budget", "seed", "limit"),
    *("batch_size", "nproc"),
)
_FROM_ROWS = (
    *KNOBS,
    *("head_scores_hash", "processes", "device_type", "dtype", "commit"),
    *(f"version_{name}" for name in VERSIONS),
)
#: Figure -> how several tasks of one cell become one. Metrics differ between tasks, so scores do not.
FIGURES = {"samples": "sum", "skipped": "sum", **columns.FIGURES, "attempts": "max"}
_OF_ONE_TASK = ("metric", "score", "stderr", "ci_low", "ci_high")
_SECRET = re.compile(r"token|secret|password|api_?key", re.IGNORECASE)


def label(method: str, budget: Any, knobs: Mapping[str, Any]) -> str:
    """A configuration in words, equal for its seeds: ``sparsemm b32 kernel_size=7``."""
    known = plain({"b": budget, **knobs})
    given = {name: value for name, value in known.items() if value is not None}
    parts = [f"b{int(value)}" if name == "b" else f"{name}={value}" for name, value in given.items()]
    return " ".join([method, *parts])


def config(cell: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Config of a run: one key per knob. Keys whose name speaks of a secret are left out.

    From ``cell.json`` and the cell's rows of the results, which know defaults, versions, and where it ran.
    """
    found = {name: cell.get(name) for name in _FROM_CELL} | dict(cell["knobs"])
    found |= {f"model_args.{name}": value for name, value in cell["model_args"].items()}
    found |= {
        "task": ",".join(cell["tasks"]),
        "tasks": list(cell["tasks"]),
        "cell": cell["id"],
        "config_hash": cell["hash"],
        "configuration": label(cell["method"], cell["budget"], cell["knobs"]),
    }
    known = rows[0] if rows else {}
    found |= {name: known[name] for name in _FROM_ROWS if plain(known.get(name)) is not None}
    # A table with gaps holds integers as floats; runs are grouped by what the cell's description says.
    return {name: canonical(plain(value)) for name, value in found.items() if not _SECRET.search(name)}


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summary of a run from its rows of the results table.

    ``<task>/<figure>`` and ``<task>/<metric>`` for each task. The figures also stand without a task: those of
    the only task, or over several tasks as ``FIGURES`` says; scores only if there is one task.
    """
    found: dict[str, Any] = {}
    for row in rows:
        values = {name.partition(",")[0]: value for name, value in _scores(row).items()}
        values |= {name: row.get(name) for name in (*_OF_ONE_TASK, *FIGURES)}
        found |= {f"{row['task']}/{name}": value for name, value in values.items()}
        if len(rows) == 1:
            found |= values
    if len(rows) > 1:
        table = pd.DataFrame(rows).reindex(columns=list(FIGURES)).astype(float)
        found |= table.agg(FIGURES).to_dict()
    return {name: value for name, value in plain(found).items() if value is not None}


def _scores(row: Mapping[str, Any]) -> dict[str, Any]:
    scores = plain(row.get("scores"))
    return json.loads(scores) if isinstance(scores, str) else {}
