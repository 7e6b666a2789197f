"""Configurations: a study's cells with the seeds of one configuration put together."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sparsemm_eval.study.bootstrap import Interval, mean_interval
from sparsemm_eval.study.columns import crossed_knobs
from sparsemm_eval.study.metrics import PRIMARY, Metric

_FIGURES = (
    *("effective_budget", "full_budget", "kv_bytes_per_sample", "kv_bytes_full_per_sample", "kv_share"),
    *("kv_bytes_end_per_sample", "kv_bytes_reserve_per_sample", "kv_bytes_peak_per_call"),
    *("prefill_seconds_per_sample", "decode_seconds_per_step", "decode_seconds_per_token"),
    *("seconds", "agreement", "agreement_similarity"),
)


def configurations(cells: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """One row per model, method, budget, crossed knobs and task.

    Parameters
    ----------
    cells, samples : pandas.DataFrame
        Of `results.collect`.

    Returns
    -------
    pandas.DataFrame
        ``score`` and the measured figures are means over the seeds that are done; ``stderr``, ``ci_low``
        and ``ci_high`` are a bootstrap over documents of each document's mean over seeds, so that they do
        not take answers to the same document for independent ones. ``seeds`` and ``seeds_done`` count;
        ``score_min`` and ``score_max`` are the extremes over seeds; ``cells`` lists the cells' ids;
        ``state`` is ``done`` only where every seed is.
    """
    crossed = crossed_knobs(cells)
    keys = ["model", "pretrained", "method", "budget", *crossed, "task"]
    by_cell = dict(iter(samples.groupby(["cell", "task"])))
    groups = cells.groupby(keys, dropna=False, sort=False)
    rows = [_row(dict(zip(keys, key, strict=True)), group, by_cell) for key, group in groups]
    frame = pd.DataFrame(rows).astype({"budget": "Int64"})
    # Models, methods and tasks stay in the study's order; a method's curve runs over its budgets.
    order = {name: list(frame[name].unique()) for name in ("model", "method", "task")}
    return frame.sort_values(
        ["model", "method", *crossed, "budget", "task"],
        key=lambda column: column.map(order[column.name].index) if column.name in order else column,
        kind="stable",
        ignore_index=True,
    )


def _row(
    keys: dict[str, Any], group: pd.DataFrame, samples: dict[tuple[str, str], pd.DataFrame]
) -> dict[str, Any]:
    done = group[group["state"] == "done"]
    undone = group.loc[group["state"] != "done", "state"]
    row = {
        **keys,
        "metric": done["metric"].iloc[0] if len(done) else pd.NA,
        "score": done["score"].mean(),
        "score_min": done["score"].min(),
        "score_max": done["score"].max(),
        **{name: float("nan") for name in ("stderr", "ci_low", "ci_high")},
        "samples": int(done["samples"].min()) if len(done) else 0,
        "skipped": int(done["skipped"].sum()),
        "seeds": len(group),
        "seeds_done": len(done),
        **{name: done[name].mean() for name in _FIGURES},
        "cells": list(group["cell"]),
        "state": "done" if undone.empty else undone.iloc[0],
        "note": "; ".join(dict.fromkeys(done["note"].dropna())),
    }
    interval = _interval(done, keys["task"], samples)
    if interval is not None:
        row |= {"stderr": interval.stderr, "ci_low": interval.low, "ci_high": interval.high}
    return row


def _interval(done: pd.DataFrame, task: str, samples: dict[tuple[str, str], pd.DataFrame]) -> Interval | None:
    if done.empty or done["ci_low"].isna().any():
        return None
    if len(done) == 1:
        only = done.iloc[0]
        return Interval(only["stderr"], only["ci_low"], only["ci_high"])
    scores = [samples[cell, task].set_index("doc_id")["score"] for cell in done["cell"]]
    table = pd.concat(scores, axis=1)
    if table.isna().any(axis=None):  # seeds that skipped different documents
        return None
    values = table.mean(axis=1).tolist()
    return mean_interval(values).scaled(PRIMARY.get(task, Metric("")).scale(len(values)))
