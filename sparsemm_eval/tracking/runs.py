"""The W&B runs of a study: one per cell that has ended, and one whose tables compare all of them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import wandb
from PIL import Image

from sparsemm_eval.files import check_target, digest_of
from sparsemm_eval.study import results
from sparsemm_eval.study.cell_files import read_cell
from sparsemm_eval.study.comparisons import paired
from sparsemm_eval.study.folder import StudyFolder
from sparsemm_eval.study.json_values import plain
from sparsemm_eval.study.pictures import pictures
from sparsemm_eval.study.tables import Study
from sparsemm_eval.tracking import flat
from sparsemm_eval.tracking.media import budget_map, running_scores, sample_table

#: Columns of the comparison besides model, task and configuration.
COMPARED = (
    *("effective_budget", "score", "ci_low", "ci_high", "samples", "agreement"),
    *("kv_bytes_per_sample", "kv_share", "prefill_seconds_per_sample", "decode_seconds_per_token"),
)
_NAME = 128  # most characters of an artifact's name


def log_cell(root: Path, identifier: str) -> None:
    """Write the run of a cell that is done or has failed; a cell that is run again goes on with its run."""
    study = StudyFolder(root)
    files = read_cell(study.cell(identifier).root)
    cells, samples = results.collect(root, {identifier})
    rows = cells.to_dict("records") if files.done else []
    words = (files.cell["method"], files.cell["model"], *files.tasks)
    tags = list(dict.fromkeys(word[:64] for word in words))
    with _run(
        study,
        "cell",
        run_id=files.cell["hash"][:16],
        name=identifier,
        tags=tags,
        config=flat.config(files.cell, rows),
        failed=not files.done,
    ) as run:
        run.summary.update({"state": files.status["state"], **flat.summary(rows)})
        if not files.done:
            run.summary.update({"error": files.status.get("error")})
        for point in running_scores(samples) if files.done else ():
            run.log(point)
        if files.record.get("kept_mean"):
            run.log({"head_budgets": _image(budget_map(files.record["kept_mean"], identifier))})
        if len(samples):
            run.log({"samples_table": sample_table(files, samples)})
        if files.done:
            records = (files.folder / "stats").glob("*_sparsemm_run.json")
            last = max(records, key=lambda path: path.stat().st_mtime_ns, default=Path())
            named = {"cell.json": files.folder / "cell.json", "results.json": files.results.path}
            _log_artifact(run, "cell-results", identifier, named | {"run_record.json": last})


def log_study(root: Path) -> None:
    """Write the run that compares a study's configurations: a table, curves for each task, and its tables.

    Every curve is a method's score against its effective budget, with its interval beside it.
    """
    study = StudyFolder(root)
    settings = study.settings()
    cells, samples = results.collect(root)
    found = Study.of(cells, samples)
    rows = found.configurations[found.configurations["seeds_done"] > 0]
    identity = digest_of([settings["name"], settings["created"]])
    shared = {"study": settings["name"], "cells": len(settings["cells"])}
    with _run(study, "study", run_id=identity[:16], name=settings["name"], config=shared) as run:
        done = cells.drop_duplicates("cell")["state"].eq("done")
        run.summary.update({"cells_done": int(done.sum()), "cells": len(done)})
        tables = {"comparison": rows[["model", "task", "label", "budget", *COMPARED]]}
        if len(found.equal):
            tables["equal_effective_budgets"] = found.equal.drop(columns="scores")
            tables["paired_differences"] = paired(found.equal, found.against)
        for name, frame in tables.items():
            values = [[plain(value) for value in row] for row in frame.itertuples(index=False)]
            run.log({name: wandb.Table(columns=list(frame.columns), data=values)})
        for (model, task), group in rows.groupby(["model", "task"], sort=False):
            run.log({f"curves/{model}/{task}": curves(group, f"{task}, {model}")})
        for picture in pictures(found):
            run.log({f"figures/{picture.name}": _image(picture.figure)})
        paths = [root / name for name in ("results.parquet", "results.csv", "study.json")]
        _log_artifact(run, "study-results", settings["name"], {path.name: path for path in paths})


def curves(rows: pd.DataFrame, title: str) -> Any:
    """Score against effective budget: each curve's scores, and the ends of its intervals as two lines."""
    xs, ys, keys = [], [], []
    for curve, group in rows.groupby("label", sort=False):
        points = group.dropna(subset=["effective_budget", "score"]).sort_values("effective_budget")
        for name, column in ((curve, "score"), (f"{curve} (low)", "ci_low"), (f"{curve} (high)", "ci_high")):
            known = points.dropna(subset=[column])
            if len(known):
                xs.append(known["effective_budget"].tolist())
                ys.append(known[column].tolist())
                keys.append(name)
    return wandb.plot.line_series(xs=xs, ys=ys, keys=keys, title=title, xname="effective budget")


@contextmanager
def _run(
    study: StudyFolder, kind: str, *, run_id: str, failed: bool = False, **described: Any
) -> Iterator[Any]:
    record = study.settings()
    settings = record["settings"]["wandb"]
    online = settings["mode"] == "online"
    # W&B itself would fall back to a temporary folder, where nobody looks for the run.
    check_target("wandb", study.root / "wandb", folder=True)
    run = wandb.init(
        mode=settings["mode"],
        project=settings["project"],
        entity=settings["entity"],
        group=record["name"],
        job_type=kind,
        id=run_id,
        allow_val_change=True,
        # An offline run has nobody to ask; it keeps the id and meets its earlier part when synced.
        resume="allow" if online else None,
        dir=str(study.root),
        settings=_quiet(),
        **described,
    )
    run.define_metric("document", summary="none")
    run.define_metric("running_score/*", step_metric="document", summary="none")
    yield run
    run.finish(exit_code=int(failed))


def _quiet() -> wandb.Settings:
    """No console capture, no code, no git, no machine: a cell's own files say what was run."""
    return wandb.Settings(
        console="off",
        silent=True,
        disable_code=True,
        disable_git=True,
        save_code=False,
        symlink=False,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )


def _image(figure: Any) -> wandb.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, format="png")
    return wandb.Image(Image.open(buffer))


def _log_artifact(run: Any, kind: str, name: str, files: Mapping[str, Path]) -> None:
    artifact = wandb.Artifact(re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:_NAME], type=kind)
    for entry, path in files.items():
        if path.is_file():
            artifact.add_file(str(path), name=entry)
    run.log_artifact(artifact)
