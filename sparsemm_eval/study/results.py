"""A study's results as two tables: one row per cell and task, one row per sample."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rapidfuzz.distance import Levenshtein

from sparsemm_eval.errors import ConfigError, EvaluationError
from sparsemm_eval.files import digest_of, replacing, source_digest, write_json_atomically
from sparsemm_eval.heads.scores.recall import FIGURES as RECALL
from sparsemm_eval.pruning.registry import SETTING
from sparsemm_eval.study.cell_files import CellFiles, read_study
from sparsemm_eval.study.columns import KNOBS, SAMPLE_COLUMNS, VERSIONS, column_of, result_frame, sample_frame
from sparsemm_eval.study.json_values import plain
from sparsemm_eval.study.method_knobs import knobs_of
from sparsemm_eval.study.metrics import per_sample, primary
from sparsemm_eval.study.statistics import mean_interval


def collect(
    folders: Path | Sequence[Path], only: Collection[str] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read study folders.

    Every cell has its rows, also those that failed, run, wait or are stale: with their state and without a
    score. A cell that two folders hold alike has one.

    The folders may be in use; ``only`` are ids of the cells to read, all by default. Returns cells × tasks
    and samples, with the columns that docs/studies.md describes.

    Raises
    ------
    EvaluationError
        If a folder is no study or a cell's description cannot be read.
    """
    cells, parts = _read(folders, only)
    samples = pa.concat_tables([_schema().empty_table(), *(part() for part in parts)])
    return cells, sample_frame(samples.to_pandas())


def write(folder: Path, samples: bool = True) -> None:
    """Write ``results.parquet`` and ``results.csv``, and ``samples.parquet`` if asked for, each in one step.

    Raises
    ------
    EvaluationError
        As `collect`.
    OSError
        If a file cannot be written; what was there before is then left as it was.
    """
    cells, parts = _read(folder, None)
    if samples:
        with replacing(folder / "samples.parquet") as path, pq.ParquetWriter(path, _schema()) as writer:
            # A cell at a time: a study may hold more answers than memory.
            for part in parts:
                writer.write_table(part())
    with replacing(folder / "results.csv") as path:
        csv(cells).to_csv(path, index=False)
    with replacing(folder / "results.parquet") as path:
        cells.to_parquet(path, index=False)


def csv(cells: pd.DataFrame) -> pd.DataFrame:
    """The table with texts that a spreadsheet would take for formulas set apart by an apostrophe."""
    texts = cells.select_dtypes("string")
    return cells.assign(**texts.replace(r"^(?=[=+\-@])", "'", regex=True))


def _read(
    folders: Path | Sequence[Path], only: Collection[str] | None
) -> tuple[pd.DataFrame, list[Callable[[], pa.Table]]]:
    """The table of cells, and what reads each cell's samples."""
    files, references = _files(folders, only)
    found = [_summary(one, references.get(one.comparison)) for one in files]
    knobs = (column_of(name) for one in files for name in one.cell["knobs"])
    return result_frame([row for rows, _ in found for row in rows], knobs), [samples for _, samples in found]


def _files(
    folders: Path | Sequence[Path], only: Collection[str] | None
) -> tuple[list[CellFiles], dict[str, CellFiles]]:
    """The cells, each once, and the finished FullKV cells by what they can be compared with."""
    places = [folders] if isinstance(folders, (str, Path)) else list(folders)
    found: dict[tuple[str, str], CellFiles] = {}
    references: dict[str, CellFiles] = {}
    for files in (files for place in places for files in read_study(Path(place))):
        if files.is_reference and files.done:
            references[files.comparison] = files
        key = (files.cell["id"], files.cell["hash"])
        if (only is None or files.cell["id"] in only) and (key not in found or not found[key].done):
            found[key] = files
    return list(found.values()), references


def _summary(
    files: CellFiles, reference: CellFiles | None
) -> tuple[list[dict[str, Any]], Callable[[], pa.Table]]:
    """A cell's rows, and what reads its samples.

    What a finished cell says is worked out once and kept in its folder, where that can be written.
    """
    if not files.done:
        return [_row(files, task, [], "no results") for task in files.tasks], _schema().empty_table
    own = None if reference is None or reference is files else reference
    key = digest_of([source_digest(), files.attempt, None if own is None else own.attempt])
    place, kept = files.folder / "summary.json", files.folder / "samples.parquet"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        known = json.loads(place.read_text(encoding="utf-8"))
        if known["key"] == key and kept.is_file():
            return known["rows"], lambda: pq.read_table(kept)
    rows, samples = [], []
    try:
        for task in files.tasks:
            found, values = _samples(files, task, own)
            rows.append(plain(_row(files, task, found, values)))
            samples += found
    except EvaluationError as error:
        return _summary(files.failed(error), None)
    table = pa.Table.from_pandas(sample_frame(samples), _schema(), preserve_index=False)
    with contextlib.suppress(OSError):
        with replacing(kept) as path:
            pq.write_table(table, path)
        write_json_atomically(place, {"key": key, "rows": rows})
        return rows, lambda: pq.read_table(kept)
    return rows, lambda: table


@cache
def _schema() -> pa.Schema:
    """Of the samples, whatever is missing in a cell."""
    return pa.Schema.from_pandas(sample_frame([]), preserve_index=False)


def _samples(
    files: CellFiles, task: str, reference: CellFiles | None
) -> tuple[list[dict[str, Any]], list[float] | str]:
    """A task's sample rows, and their scores where they make up the task's score."""
    cell, logged, measured = files.cell, files.logged(task), files.measured(task)
    reported = files.results.scores(task)
    metric = primary(task, reported)
    values = per_sample(metric, logged, reported[metric.name]) if metric else "no score"
    truth = {} if reference is None else reference.measured(task)
    known = {row["doc_id"]: row for row in logged}
    scores = dict(zip(known, values, strict=True)) if isinstance(values, list) else {}
    common = {name: cell[name] for name in ("study", "model", "method", "budget", "seed")}
    common |= {"cell": cell["id"], "kernel_size": _knob(files, "kernel_size", {}), "task": task}
    rows = []
    for doc in sorted({*known, *measured}):
        said, seen, full = known.get(doc, {}), measured.get(doc, {}), truth.get(doc)
        answer = seen.get("answer", said.get("filtered_resps"))
        # Equal digests mean equal prompts: without, the two answers are not to the same question.
        comparable = full is not None and full["sample"] == seen.get("sample")
        row = {**{name: seen.get(name) for name in SAMPLE_COLUMNS}, **common, "doc_id": doc}
        row |= {"question": _text(said.get("input")), "answer": _text(answer)}
        row |= {"target": _text(said.get("target")), "score": scores.get(doc)}
        row["fullkv_answer"] = full["answer"] if comparable else None
        row["identical"] = full["answer"] == answer if comparable else None
        rows.append(row)
    return rows, values


def _row(
    files: CellFiles, task: str, samples: list[dict[str, Any]], values: list[float] | str
) -> dict[str, Any]:
    cell, status, record = files.cell, files.status, files.record
    defaults = _defaults(files)
    row = {
        **{name: cell[name] for name in ("study", "model", "model_name", "family", "pretrained", "method")},
        **{name: cell.get(name) for name in ("budget", "seed", "limit", "batch_size")},
        "cell": cell["id"],
        "task": task,
        "config_hash": cell["hash"],
        **{column_of(name): _knob(files, name, defaults) for name in {*KNOBS, *cell["knobs"], *defaults}},
        **{name: status.get(name) for name in ("state", "attempts", "seconds", "error")},
    }
    if not files.done:
        return row
    row |= {
        **_score(files, task, samples, values),
        "samples": len(samples),
        "skipped": sum(name.rpartition("/")[0] == task for name in record.get("skipped", {})),
        **_figures(files, task),
        **_agreement(samples),
        **{f"version_{name}": record.get("versions", {}).get(name) for name in VERSIONS},
        **{name: record.get(name) for name in ("commit", "processes", "device_type", "dtype")},
        "code": (record.get("source") or "")[:12] or None,
        "head_scores_hash": record.get("head_scores"),
    }
    return row


def _score(
    files: CellFiles, task: str, samples: list[dict[str, Any]], values: list[float] | str
) -> dict[str, Any]:
    scores = files.results.scores(task)
    metric = primary(task, scores)
    if metric is None:
        return {"state": "failed", "error": f"lmms-eval's results have no score for {task}"}
    found = {"metric": metric.name, "score": scores[metric.name], "scores": json.dumps(scores)}
    caution = metric.caution(len(files.logged(task)))
    if isinstance(values, str):
        notes = [caution, f"no confidence interval: {values}"]
        return {**found, "note": "; ".join(note for note in notes if note)}
    scored = [row for row in samples if row["score"] is not None]
    table = np.array([[row["score"]] for row in scored])
    interval = mean_interval(table, clusters_of(scored)).scaled(metric.scale(len(values)))
    return {**interval.columns(), **found, "note": caution}


def clusters_of(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """What samples share that are not independent: their images, or nothing where these are not known."""
    return [
        row["images"] if isinstance(row["images"], str) else f"document {row['doc_id']}" for row in samples
    ]


def _figures(files: CellFiles, task: str) -> dict[str, Any]:
    """Means over a task's samples, where they were kept."""
    samples = pd.DataFrame(list(files.measured(task).values()))
    if samples.empty:
        return {}
    # Times and room depend on the machine and the batch: answers from the journal are of an earlier run.
    timed = samples[~samples["restored"].astype(bool)]
    steps = timed["decode_seconds_per_step"].astype(float)
    means = {**_means(samples, _MEANS), **_means(timed, _TIMED_MEANS)}
    return {
        **means,
        "decode_seconds_per_token": (steps / timed["batch"]).mean(),
        "kv_bytes_peak_per_call": timed["kv_bytes_peak_per_call"].max(),
        "samples_timed": len(timed),
        "kv_share": means["kv_bytes_per_sample"] / means["kv_bytes_full_per_sample"],
        "effective_budget_min": samples["effective_budget"].min(),
        "effective_budget_max": samples["effective_budget"].max(),
        "evidence_samples": samples.get("evidence_tokens", pd.Series()).count(),
    }


#: A sample's figure, and the column of its mean over samples.
_MEANS = {
    **{name: name for name in ("effective_budget", *RECALL)},
    **{name: f"{name}_per_sample" for name in ("kv_bytes", "kv_bytes_full", "kv_bytes_end")},
    **{name: f"{name}_per_sample" for name in ("image_tokens", "image_tokens_kept", "prefill_flops")},
    "evidence_tokens": "evidence_tokens_per_sample",
    "prompt_tokens": "full_budget",
}
_TIMED_MEANS = {
    **{name: f"{name}_per_sample" for name in ("kv_bytes_reserve", "prefill_seconds")},
    "decode_seconds_per_step": "decode_seconds_per_step",
}


def _means(samples: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, float]:
    return samples.reindex(columns=list(columns)).astype(float).mean().rename(columns).to_dict()


def _agreement(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of answers equal to FullKV's, and how alike the texts are, in [0, 1]."""
    compared = [row for row in samples if row["identical"] is not None]
    if not compared:
        return {}
    alike = (Levenshtein.normalized_similarity(row["answer"], row["fullkv_answer"]) for row in compared)
    same = fmean(row["identical"] for row in compared)
    return {"agreement": same, "agreement_similarity": fmean(alike)}


def _knob(files: CellFiles, name: str, defaults: Mapping[str, Any]) -> Any:
    """A knob as the cell sets it, else the default: that the run recorded, or that its method has now."""
    cell = files.cell
    for given in (cell["knobs"], cell.get("model_args", {})):
        if name in given:
            return given[name]
    return files.record.get("compression", {}).get(name, defaults.get(name))


def _defaults(files: CellFiles) -> dict[str, Any]:
    """Of the knobs that play a part in a cell's method; empty for a method that is not known here."""
    given = {**files.cell["knobs"], **files.cell.get("model_args", {})}
    with contextlib.suppress(ConfigError):
        knobs = knobs_of(files.cell["method"], given.get("score"), given.get(SETTING))
        return {name: knob.default for name, knob in knobs.items() if not knob.draws}
    return {}


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) == 1:
        return _text(value[0])
    return json.dumps(value, ensure_ascii=False)
