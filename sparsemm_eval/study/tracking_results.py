"""Everything W&B gets at a cell's end, collected in one file that its session reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsemm_eval.study import tracking_figures
from sparsemm_eval.study.tracking_media import ImageOf, sample_table, save_budget_map, table_note

if TYPE_CHECKING:
    import pandas as pd

_MAX_ARTIFACT_NAME = 128


def write_payload(
    cell: Mapping[str, Any],
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    samples: pd.DataFrame,
    history: list[dict[str, Any]],
    media_step: int,
    image_of: ImageOf,
    staging: Path,
) -> Path:
    """Write the payload of `wandb_session.Session.results`.

    Parameters
    ----------
    cell : mapping
        ``cell.json``.
    folder : pathlib.Path
        The cell's.
    rows, samples
        The cell's rows of the results and the samples table.
    history : list of dict
        ``step`` and ``values`` of the rows still to be logged.
    media_step : int
        Step of table and images.
    image_of : callable
    staging : pathlib.Path
        Where the payload and the pictures go.

    Returns
    -------
    pathlib.Path
        The payload.
    """
    results = newest_results(folder)
    record = {} if results is None else json.loads(results.read_text(encoding="utf-8")).get("sparsemm", {})
    config = tracking_figures.rows_config(rows)
    images, tables = {}, {}
    if record.get("kept_mean"):
        picture = staging / "head_budgets.png"
        save_budget_map(record["kept_mean"], picture, cell["id"])
        images["head_budgets"] = str(picture)
    if not samples.empty:
        tables["samples_table"] = sample_table(samples, image_of, staging)
        config["samples_table_holds"] = table_note(len(tables["samples_table"]["rows"]), len(samples))
    payload = {
        "config": config,
        "summary": tracking_figures.summary(rows),
        "history": history,
        "media_step": media_step,
        "images": images,
        "tables": tables,
        "artifact": _artifact(cell, folder, results),
    }
    path = staging / "payload.json"
    path.write_text(json.dumps(payload, allow_nan=False), encoding="utf-8")
    return path


def newest_results(folder: Path) -> Path | None:
    """The latest results file of a cell: the one its status names, or the newest that lmms-eval left."""
    status = folder / "status.json"
    if status.is_file():
        named = json.loads(status.read_text(encoding="utf-8")).get("results")
        if named and (folder / named).is_file():
            return folder / named
    found = [
        path for pattern in ("*_results.json", "*/*_results.json") for path in (folder / "lmms").glob(pattern)
    ]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def _artifact(cell: Mapping[str, Any], folder: Path, results: Path | None) -> dict[str, Any]:
    files = {"cell.json": folder / "cell.json"}
    if results is not None:
        files["results.json"] = results
    records = (folder / "stats").glob("*_sparsemm_run.json")
    record = max(records, key=lambda path: path.stat().st_mtime_ns, default=None)
    if record is not None:
        files["run_record.json"] = record
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", cell["id"])
    return {
        "name": name[:_MAX_ARTIFACT_NAME],
        "type": "cell-results",
        "metadata": {"cell": cell["id"], "hash": cell["hash"]},
        "files": {name: str(path) for name, path in files.items() if path.is_file()},
    }
