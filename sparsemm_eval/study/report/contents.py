"""What the page shows, as plain values for its template and scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pandas as pd

from sparsemm_eval import __version__
from sparsemm_eval.study.cell_files import CellFiles, read_study
from sparsemm_eval.study.columns import VERSIONS, crossed_knobs
from sparsemm_eval.study.json_values import plain
from sparsemm_eval.study.method_knobs import REFERENCE, style_of, title_of
from sparsemm_eval.study.metrics import PRIMARY
from sparsemm_eval.study.report.disagreements import worst
from sparsemm_eval.study.report.images import thumbnails
from sparsemm_eval.study.seeds import configurations
from sparsemm_eval.study.tables import of_kind

_FIGURES = (
    *("score", "score_min", "score_max", "ci_low", "ci_high", "effective_budget", "full_budget"),
    *("kv_share", "kv_bytes_per_sample", "kv_bytes_end_per_sample", "kv_bytes_reserve_per_sample"),
    *("kv_bytes_peak_per_call", "prefill_seconds_per_sample", "decode_seconds_per_step"),
    *("decode_seconds_per_token", "seconds", "agreement"),
)
_SETUP = {
    "pretrained": "checkpoint",
    **{f"version_{name}": name for name in VERSIONS},
    "commit": "commit",
    "dtype": "dtype",
    "device_type": "device",
    "batch_size": "batch size",
    "processes": "processes",
    "head_scores_hash": "head scores",
}


def contents(folder: Path, cells: pd.DataFrame, samples: pd.DataFrame) -> dict[str, Any]:
    """Everything the template names.

    Parameters
    ----------
    folder : pathlib.Path
    cells, samples : pandas.DataFrame
        Of `results.collect`.

    Returns
    -------
    dict
        ``data`` holds what the scripts draw; its ``configurations`` are also the rows of the tables.
    """
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    knobs = crossed_knobs(cells)
    frame = configurations(cells, samples)
    rows = [
        {**_configuration(row, knobs, cells), "number": number}
        for number, (_, row) in enumerate(frame.iterrows())
    ]
    disagreements = worst(cells, samples, knobs)
    files = read_study(folder)
    images, without = thumbnails(files, {(row["task"], row["doc_id"]) for row in disagreements})
    states = cells.drop_duplicates("cell")["state"].value_counts().to_dict()
    data = {
        "study": study["name"],
        "knobs": knobs,
        "titles": {name: title_of(name) for name in _unique(cells["method"])},
        "styles": {name: [*astuple(style_of(name))] for name in _unique(cells["method"])},
        "reference": REFERENCE,
        "reference_title": title_of(REFERENCE),
        "models": _unique(cells["model"]),
        "tasks": [_task(task, frame) for task in _unique(cells["task"])],
        "configurations": rows,
        "kept": _kept(files, knobs),
        "images": images,
    }
    return {
        "study": study,
        "states": states,
        "total": sum(states.values()),
        "data": data,
        "tables": of_kind(cells, samples, "all"),
        "failed": _failed(cells),
        "unfinished": _unique(cells.loc[cells["state"].isin(["pending", "running"]), "cell"]),
        "notes": _notes(frame),
        "setup": {title: _unique(cells[name].dropna()) for name, title in _SETUP.items()},
        "settings": json.dumps(study.get("settings", {}), indent=2, ensure_ascii=False),
        "disagreements": disagreements,
        "without_image": without,
        "version": __version__,
    }


def _configuration(row: pd.Series, knobs: list[str], cells: pd.DataFrame) -> dict[str, Any]:
    members = cells[cells["cell"].isin(row["cells"]) & (cells["task"] == row["task"])]
    several = row["seeds"] > 1
    return {
        **{name: plain(row[name]) for name in ("model", "method", "budget", "task", "metric", "state")},
        **{name: plain(row[name]) for name in (*_FIGURES, "samples", "skipped", "seeds", "seeds_done")},
        "knobs": {name: plain(row[name]) for name in knobs},
        # Every seed's own point, where there are several.
        "each": [
            {name: plain(member[name]) for name in ("seed", *_FIGURES) if name in member}
            for _, member in members[members["state"] == "done"].iterrows()
        ]
        if several
        else [],
    }


def _task(task: str, frame: pd.DataFrame) -> dict[str, Any]:
    metrics = frame.loc[frame["task"] == task, "metric"].dropna()
    known = PRIMARY.get(task)
    return {
        "name": task,
        "metric": metrics.iloc[0] if len(metrics) else (known.name if known else "score"),
    }


def _kept(cells: Sequence[CellFiles], knobs: list[str]) -> list[dict[str, Any]]:
    """Mean kept entries [layers][KV heads] of every finished cell."""
    return [
        {
            "cell": files.cell["id"],
            "model": files.cell["model"],
            "method": files.cell["method"],
            "budget": files.cell["budget"],
            "seed": files.cell["seed"],
            "tasks": files.tasks,
            "knobs": {name: files.cell["knobs"].get(name) for name in knobs},
            "kept": [[round(entries, 1) for entries in layer] for layer in files.record["kept_mean"]],
        }
        for files in cells
        if files.record.get("kept_mean")
    ]


def _failed(cells: pd.DataFrame) -> list[dict[str, Any]]:
    columns = ["cell", "task", "method", "budget", "attempts", "error"]
    failed = cells.loc[cells["state"] == "failed", columns]
    grouped = failed.groupby("cell", sort=False).agg(
        {"task": ", ".join, "method": "first", "budget": "first", "attempts": "first", "error": "first"}
    )
    return [
        {"cell": cell, **{name: plain(row[name]) for name in row.index}} for cell, row in grouped.iterrows()
    ]


def _notes(frame: pd.DataFrame) -> list[str]:
    found = frame[frame["note"] != ""].drop_duplicates(["task", "note"])
    notes = [f"{row['task']}: {row['note']}." for _, row in found.iterrows()]
    if (frame["ci_low"] == frame["ci_high"]).any():
        notes.append(
            "An interval without width means that all samples scored the same, not that the score is certain."
        )
    return notes


def _unique(values: pd.Series) -> list[Any]:
    return [plain(value) for value in dict.fromkeys(values)]
