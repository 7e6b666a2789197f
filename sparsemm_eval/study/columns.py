"""Columns and types of a study's two tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from sparsemm_eval.heads.scores.recall import FIGURES as RECALL
from sparsemm_eval.pruning.registry import SETTING
from sparsemm_eval.study.method_knobs import REFERENCE

#: Knobs that always have a column.
KNOBS = {
    **{"window": "Int64", "ratio": "float64", "kernel_size": "Int64"},
    **dict.fromkeys(("pooling", "gqa", "surplus"), "string"),
}
#: Knobs whose columns have another name: a cell's score is what the task gives.
_RENAMED = {"score": "entry_score"}
VERSIONS = ("sparsemm_eval", "torch", "transformers", "lmms_eval")
EVIDENCE = ("evidence_tokens_per_sample", *RECALL)
#: Measured of a task, and how the figures of several tasks of a cell become one.
FIGURES = {
    **{"effective_budget": "mean", "effective_budget_min": "min", "effective_budget_max": "max"},
    **dict.fromkeys(("full_budget", "kv_bytes_per_sample", "kv_bytes_full_per_sample", "kv_share"), "mean"),
    **dict.fromkeys(("kv_bytes_end_per_sample", "kv_bytes_reserve_per_sample"), "mean"),
    **{"kv_bytes_peak_per_call": "max", "samples_timed": "sum"},
    **dict.fromkeys(("image_tokens_per_sample", "image_tokens_kept_per_sample"), "mean"),
    **dict.fromkeys(("prefill_flops_per_sample", "prefill_seconds_per_sample"), "mean"),
    **dict.fromkeys(("decode_seconds_per_step", "decode_seconds_per_token"), "mean"),
    "seconds": "max",
    **dict.fromkeys(("agreement", "agreement_similarity", *EVIDENCE), "mean"),
    "evidence_samples": "sum",
}
#: Columns and their types, in their order. Further crossed knobs follow ``surplus``.
COLUMNS = {
    **dict.fromkeys(("study", "cell", "model", "model_name", "family", "pretrained"), "string"),
    **dict.fromkeys(("method", "task", "metric"), "string"),
    **dict.fromkeys(("score", "stderr", "ci_low", "ci_high"), "float64"),
    **dict.fromkeys(("samples", "limit", "skipped", "budget", "seed"), "Int64"),
    **KNOBS,
    **{name: "Int64" if how == "sum" else "float64" for name, how in FIGURES.items()},
    **dict.fromkeys(("scores", *(f"version_{name}" for name in VERSIONS)), "string"),
    **dict.fromkeys(("code", "commit", "config_hash", "head_scores_hash"), "string"),
    **dict.fromkeys(("batch_size", "processes"), "Int64"),
    **dict.fromkeys(("device_type", "dtype", "state"), "string"),
    **{"attempts": "Int64", "error": "string", "note": "string"},
}
SAMPLE_COLUMNS = {
    **dict.fromkeys(("study", "cell", "model", "method", "task"), "string"),
    **dict.fromkeys(("budget", "kernel_size", "seed", "doc_id"), "Int64"),
    **dict.fromkeys(("sample", "images", "question", "answer", "target"), "string"),
    **dict.fromkeys(("score", "effective_budget"), "float64"),
    **dict.fromkeys(("kv_bytes", "prompt_tokens", "tokens", "evidence_tokens"), "Int64"),
    **dict.fromkeys(RECALL, "float64"),
    **{"fullkv_answer": "string", "identical": "boolean"},
}


def column_of(knob: str) -> str:
    """The name of a knob's column."""
    return _RENAMED.get(knob, knob)


def result_frame(rows: list[dict[str, Any]], knobs: Iterable[str]) -> pd.DataFrame:
    """Rows of cells and tasks as a table; a column that a row does not have is missing there.

    Of ``knobs``, the columns of the cells' knobs, those that are not in `COLUMNS` follow ``surplus``.
    """
    names = list(COLUMNS)
    place = names.index("surplus") + 1
    further = [name for name in dict.fromkeys(knobs) if name not in COLUMNS]
    return _frame(rows, [*names[:place], *further, *names[place:]], COLUMNS)


def sample_frame(rows: list[dict[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    """Rows of samples as a table with `SAMPLE_COLUMNS`."""
    return _frame(rows, SAMPLE_COLUMNS, SAMPLE_COLUMNS)


def _frame(
    rows: list[dict[str, Any]] | pd.DataFrame, columns: Iterable[str], types: Mapping[str, str]
) -> pd.DataFrame:
    """Fixed types whatever is missing, so that two studies' tables can be put together."""
    frame = pd.DataFrame(rows, columns=list(columns), dtype=object)
    for name in frame.columns:
        kind = types.get(name)
        if kind is None:  # a further knob: numbers, if all its values are
            numbers = pd.to_numeric(frame[name], errors="coerce")
            kind = "float64" if numbers.notna().equals(frame[name].notna()) else "string"
        if kind == "float64":
            frame[name] = pd.to_numeric(frame[name])
        frame[name] = frame[name].astype(kind)
    return frame


def crossed_knobs(cells: pd.DataFrame) -> list[str]:
    """Knobs with more than one value within a model and method; always pruner, score and masked share."""
    groups = cells.groupby(["model", "method"])
    start, end = cells.columns.get_loc("seed") + 1, cells.columns.get_loc("effective_budget")
    whole = (SETTING, column_of("score"), "mask_ratio")
    return [
        name
        for name in cells.columns[start:end]
        if (groups[name].nunique() > 1).any() or (name in whole and cells[name].notna().any())
    ]


def of_reference(rows: pd.DataFrame) -> pd.Series:
    """Which rows of configurations are FullKV's of whole prompts."""
    full = rows["method"] == REFERENCE
    return full & rows[SETTING].isna() if SETTING in rows else full
