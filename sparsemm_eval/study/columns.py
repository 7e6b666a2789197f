"""Columns and types of a study's two tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from sparsemm_eval.heads.scores.recall import FIGURES
from sparsemm_eval.pruning.registry import SETTING
from sparsemm_eval.study.method_knobs import REFERENCE

#: Knobs that always have a column.
KNOBS = ("window", "ratio", "kernel_size", "pooling", "gqa", "surplus")
VERSIONS = ("sparsemm_eval", "torch", "transformers", "lmms_eval")

_TEXT = (
    *("study", "cell", "model", "model_name", "family", "pretrained", "method", "task", "metric"),
    *("pooling", "gqa", "surplus", "scores", "code", "commit", "config_hash", "head_scores_hash"),
    *("device_type", "dtype", "state", "error", "note"),
    *(f"version_{name}" for name in VERSIONS),
)
_INTEGERS = (
    *("samples", "limit", "samples_timed", "skipped", "budget", "seed", "window", "kernel_size"),
    *("batch_size", "processes", "attempts", "evidence_samples"),
)

#: Knobs whose columns have another name: a cell's score is what the task gives.
_RENAMED = {"score": "entry_score"}

EVIDENCE = ("evidence_tokens_per_sample", *FIGURES)

#: Column order; further crossed knobs follow ``surplus``.
_BEFORE_KNOBS = (
    *("study", "cell", "model", "model_name", "family", "pretrained", "method", "task", "metric"),
    *("score", "stderr", "ci_low", "ci_high", "samples", "limit", "skipped", "budget", "seed"),
)
_AFTER_KNOBS = (
    *("effective_budget", "effective_budget_min", "effective_budget_max", "full_budget"),
    *("kv_bytes_per_sample", "kv_bytes_full_per_sample", "kv_share"),
    *("kv_bytes_end_per_sample", "kv_bytes_reserve_per_sample", "kv_bytes_peak_per_call", "samples_timed"),
    *("image_tokens_per_sample", "image_tokens_kept_per_sample", "prefill_flops_per_sample"),
    *("prefill_seconds_per_sample", "decode_seconds_per_step", "decode_seconds_per_token"),
    *("seconds", "agreement", "agreement_similarity", *EVIDENCE, "evidence_samples", "scores"),
    *(f"version_{name}" for name in VERSIONS),
    *("code", "commit", "config_hash", "head_scores_hash", "batch_size", "processes", "device_type", "dtype"),
    *("state", "attempts", "error", "note"),
)
SAMPLE_COLUMNS = (
    *("study", "cell", "model", "method", "task", "budget", "kernel_size", "seed", "doc_id", "sample"),
    *(
        "images",
        "question",
        "answer",
        "target",
        "score",
        "effective_budget",
        "kv_bytes",
        "prompt_tokens",
        "tokens",
    ),
    *("evidence_tokens", *FIGURES),
    *("fullkv_answer", "identical"),
)


def column_of(knob: str) -> str:
    """The name of a knob's column."""
    return _RENAMED.get(knob, knob)


def result_frame(rows: list[dict[str, Any]], knobs: Iterable[str]) -> pd.DataFrame:
    """Rows of cells and tasks as a table.

    Parameters
    ----------
    rows : list of dict
        Column -> value; what is not there is missing.
    knobs : iterable of str
        Names of the columns of the cells' knobs; those without a column of their own follow ``surplus``.
    """
    known = {*_BEFORE_KNOBS, *KNOBS, *_AFTER_KNOBS}
    further = [name for name in dict.fromkeys(knobs) if name not in known]
    return _frame(rows, [*_BEFORE_KNOBS, *KNOBS, *further, *_AFTER_KNOBS], _INTEGERS, _TEXT)


def sample_frame(rows: list[dict[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    """Rows of samples as a table with `SAMPLE_COLUMNS`."""
    text = (
        *("study", "cell", "model", "method", "task", "sample", "images"),
        *("question", "answer", "target", "fullkv_answer"),
    )
    integers = ("budget", "kernel_size", "seed", "doc_id", "kv_bytes", "prompt_tokens", "tokens")
    integers = (*integers, "evidence_tokens")
    return _frame(rows, SAMPLE_COLUMNS, integers, text, booleans=("identical",))


def _frame(
    rows: list[dict[str, Any]] | pd.DataFrame,
    columns: Iterable[str],
    integers: Iterable[str],
    text: Iterable[str],
    booleans: Iterable[str] = (),
) -> pd.DataFrame:
    """Fixed types whatever is missing, so that two studies' tables can be put together."""
    frame = pd.DataFrame(rows, columns=list(columns), dtype=object)
    kinds = {**dict.fromkeys(integers, "Int64"), **dict.fromkeys(text, "string")}
    kinds |= dict.fromkeys(booleans, "boolean")
    for name in frame.columns:
        kind = kinds.get(name)
        if kind is not None:
            frame[name] = frame[name].astype(kind)
        elif name in KNOBS or name not in {*_BEFORE_KNOBS, *_AFTER_KNOBS, *SAMPLE_COLUMNS}:
            numeric = pd.to_numeric(frame[name], errors="coerce")
            fits = numeric.notna().equals(frame[name].notna())
            frame[name] = numeric.astype("float64") if fits else frame[name].astype("string")
        else:
            frame[name] = pd.to_numeric(frame[name]).astype("float64")
    return frame


def knobs(cells: pd.DataFrame) -> list[str]:
    """Names of the columns that hold knobs, the budget and the seed not among them."""
    start, end = cells.columns.get_loc("seed") + 1, cells.columns.get_loc("effective_budget")
    return list(cells.columns[start:end])


def crossed_knobs(cells: pd.DataFrame) -> list[str]:
    """Knobs with more than one value within a model and method; always pruner, score and masked share."""
    groups = cells.groupby(["model", "method"])
    whole = (SETTING, column_of("score"), "mask_ratio")
    return [
        name
        for name in knobs(cells)
        if (groups[name].nunique() > 1).any() or (name in whole and cells[name].notna().any())
    ]


def of_reference(rows: pd.DataFrame) -> pd.Series:
    """Which rows of configurations are FullKV's of whole prompts."""
    full = rows["method"] == REFERENCE
    return full & rows[SETTING].isna() if SETTING in rows else full
