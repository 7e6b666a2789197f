"""A study's results as two tables: one row per cell and task, one row per sample."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from sparsemm_eval.files import replacing
from sparsemm_eval.study.bootstrap import mean_interval
from sparsemm_eval.study.cell_files import CellFiles, read_study
from sparsemm_eval.study.columns import KNOBS, VERSIONS, result_frame, sample_frame
from sparsemm_eval.study.metrics import per_sample, primary


def collect(folder: Path, only: Collection[str] | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a study folder.

    Every cell has its rows, also those that failed, run or wait: with their state and without a score.

    Parameters
    ----------
    folder : pathlib.Path
        Of ``sparsemm study run``; it may be in use.
    only : collection of str, optional
        Ids of the cells to read; all by default.

    Returns
    -------
    (pandas.DataFrame, pandas.DataFrame)
        Cells × tasks and samples, with the columns that docs/studies.md describes.

    Raises
    ------
    EvaluationError
        If the folder is no study or a cell's description cannot be read.
    """
    cells = references = read_study(Path(folder), only)
    if only is not None:
        references = read_study(Path(folder), {files.cell.get("reference") for files in cells})
    by_id = {files.cell["id"]: files for files in references}
    rows, samples = [], []
    for files in cells:
        reference = by_id.get(files.cell.get("reference"))
        for task in files.tasks:
            task_samples, values = _samples(files, task, reference)
            rows.append(_row(files, task, task_samples, values))
            samples += task_samples
    knobs = (name for files in cells for name in files.cell["knobs"])
    return result_frame(rows, knobs), sample_frame(samples)


def write(folder: Path) -> tuple[Path, Path, Path]:
    """Write ``results.parquet``, ``results.csv`` and ``samples.parquet``, each in one step.

    Returns
    -------
    tuple of pathlib.Path
        In this order.

    Raises
    ------
    EvaluationError
        As `collect`.
    OSError
        If a file cannot be written; what was there before is then left as it was.
    """
    folder = Path(folder)
    cells, samples = collect(folder)
    paths = folder / "results.parquet", folder / "results.csv", folder / "samples.parquet"
    with replacing(paths[2]) as path:
        samples.to_parquet(path, index=False)
    with replacing(paths[1]) as path:
        cells.to_csv(path, index=False)
    with replacing(paths[0]) as path:
        cells.to_parquet(path, index=False)
    return paths


def _samples(
    files: CellFiles, task: str, reference: CellFiles | None
) -> tuple[list[dict[str, Any]], list[float] | str]:
    """A task's sample rows, and their scores where they make up the task's score."""
    if not files.done:
        return [], "no results"
    logged = files.logged(task)
    reported = files.results.scores(task)
    metric = primary(task, reported)
    values = per_sample(metric, logged, reported[metric.name]) if metric else "no score"
    measured = files.measured(task)
    truth = {} if reference is None or reference is files else reference.measured(task)
    known = {row["doc_id"]: row for row in logged}
    scores = dict(zip(known, values, strict=True)) if isinstance(values, list) else {}
    rows = [
        _sample_row(
            files, task, doc, known.get(doc, {}), measured.get(doc, {}), truth.get(doc), scores.get(doc)
        )
        for doc in sorted({*known, *measured})
    ]
    return rows, values


def _sample_row(
    files: CellFiles,
    task: str,
    doc: int,
    logged: Mapping[str, Any],
    measured: Mapping[str, Any],
    truth: Mapping[str, Any] | None,
    score: float | None,
) -> dict[str, Any]:
    cell = files.cell
    answer = measured.get("answer", logged.get("filtered_resps"))
    # Equal digests mean equal prompts: without, the two answers are not to the same question.
    comparable = truth is not None and truth["sample"] == measured.get("sample")
    return {
        **{name: cell[name] for name in ("study", "model", "method", "budget", "seed")},
        "cell": cell["id"],
        "kernel_size": _knob(files, "kernel_size"),
        "task": task,
        "doc_id": doc,
        "sample": measured.get("sample"),
        "question": _text(logged.get("input")),
        "answer": _text(answer),
        "target": _text(logged.get("target")),
        "score": score,
        **{name: measured.get(name) for name in ("effective_budget", "kv_bytes", "prompt_tokens", "tokens")},
        "fullkv_answer": truth["answer"] if comparable else None,
        "identical": truth["answer"] == answer if comparable else None,
    }


def _row(
    files: CellFiles, task: str, samples: list[dict[str, Any]], values: list[float] | str
) -> dict[str, Any]:
    cell, status, record = files.cell, files.status, files.record
    row = {
        **{name: cell[name] for name in ("study", "model", "model_name", "family", "pretrained", "method")},
        **{name: cell.get(name) for name in ("budget", "seed", "batch_size")},
        "cell": cell["id"],
        "task": task,
        "config_hash": cell["hash"],
        **{name: _knob(files, name) for name in {*KNOBS, *cell["knobs"]}},
        **{name: status.get(name) for name in ("state", "attempts", "seconds", "error")},
    }
    if not files.done:
        return row
    row |= {
        **_score(files, task, values),
        "samples": len(samples),
        "skipped": sum(name.rpartition("/")[0] == task for name in record.get("skipped", {})),
        **_figures(files, task),
        **_agreement(record, samples),
        **{f"version_{name}": record.get("versions", {}).get(name) for name in VERSIONS},
        **{name: record.get(name) for name in ("commit", "processes", "device_type", "dtype")},
        "head_scores_hash": record.get("head_scores"),
    }
    return row


def _score(files: CellFiles, task: str, values: list[float] | str) -> dict[str, Any]:
    scores = files.results.scores(task)
    metric = primary(task, scores)
    if metric is None:
        return {"state": "failed", "error": f"lmms-eval's results have no score for {task}"}
    found = {"metric": metric.name, "score": scores[metric.name], "scores": json.dumps(scores)}
    caution = metric.caution(len(files.logged(task)))
    if isinstance(values, str):
        notes = [caution, f"no confidence interval: {values}"]
        return {**found, "note": "; ".join(note for note in notes if note)}
    interval = mean_interval(values).scaled(metric.scale(len(values)))
    bounds = {"stderr": interval.stderr, "ci_low": interval.low, "ci_high": interval.high}
    return {**found, **bounds, "note": caution}


def _figures(files: CellFiles, task: str) -> dict[str, Any]:
    """Means over a task's samples; of the whole run where they were not kept and it had one task."""
    samples = list(files.measured(task).values())
    if not samples:
        whole = files.record.get("measured", {}) if len(files.tasks) == 1 else {}
        means = {name: whole.get(name) for name in (*_MEANS.values(), *_TIMED_MEANS.values(), *_OTHERS)}
        return {**means, "full_budget": whole.get("prompt_tokens_per_sample")}
    means = {column: _mean(sample.get(name) for sample in samples) for name, column in _MEANS.items()}
    # Times and room depend on the machine and the batch: answers from the journal are of an earlier run.
    timed = [sample for sample in samples if not sample["restored"]]
    steps = [(sample["decode_seconds_per_step"], sample["batch"]) for sample in timed]
    means |= {column: _mean(sample[name] for sample in timed) for name, column in _TIMED_MEANS.items()}
    budgets = [sample["effective_budget"] for sample in samples]
    return {
        **means,
        "decode_seconds_per_token": _mean(step and step / batch for step, batch in steps),
        "kv_bytes_peak_per_call": max((sample["kv_bytes_peak_per_call"] for sample in timed), default=None),
        "samples_timed": len(timed),
        "kv_share": means["kv_bytes_per_sample"] / means["kv_bytes_full_per_sample"],
        "effective_budget_min": min(budgets),
        "effective_budget_max": max(budgets),
        "full_budget": _mean(sample["prompt_tokens"] for sample in samples),
    }


#: A sample's figure, and the column of its mean over samples.
_MEANS = {
    "effective_budget": "effective_budget",
    "kv_bytes": "kv_bytes_per_sample",
    "kv_bytes_full": "kv_bytes_full_per_sample",
    "kv_bytes_end": "kv_bytes_end_per_sample",
}
_TIMED_MEANS = {
    "kv_bytes_reserve": "kv_bytes_reserve_per_sample",
    "prefill_seconds": "prefill_seconds_per_sample",
    "decode_seconds_per_step": "decode_seconds_per_step",
}
_OTHERS = (
    *("effective_budget_min", "effective_budget_max", "kv_share", "kv_bytes_peak_per_call"),
    *("samples_timed", "decode_seconds_per_token"),
)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _agreement(record: Mapping[str, Any], samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of equal answers, of this task; token-level similarity, of the whole run."""
    identical = [row["identical"] for row in samples if row["identical"] is not None]
    measured = record.get("measured", {})
    return {
        "agreement": fmean(identical) if identical else measured.get("agreement_identical"),
        "agreement_similarity": measured.get("agreement_edit_similarity"),
    }


def _knob(files: CellFiles, name: str) -> Any:
    """A knob as the cell sets it, else the default that the run recorded, where the method compresses."""
    cell = files.cell
    for given in (cell["knobs"], cell.get("model_args", {})):
        if name in given:
            return given[name]
    return files.record.get("compression", {}).get(name)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) == 1:
        return _text(value[0])
    return json.dumps(value, ensure_ascii=False)
