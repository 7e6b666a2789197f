"""Samples on which a compressed run's answer is furthest from FullKV's."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import pandas as pd
from rapidfuzz.distance import Levenshtein

from sparsemm_eval.study.columns import of_reference
from sparsemm_eval.study.json_values import plain

PER_METHOD = 1


def worst(
    configurations: pd.DataFrame, samples: pd.DataFrame, count: int = PER_METHOD
) -> list[dict[str, Any]]:
    """The worst disagreements of every model, task and method, no document twice for a method; worst first.

    An answer is the worse the more score it lost against FullKV's, then the less its text resembles FullKV's.

    From `comparisons.configurations` and the samples of `results.collect`, at most ``count`` of each; with
    ``lost``, the score below FullKV's (None where samples have none), and ``similarity`` in [0, 1].
    """
    apart = samples[samples["identical"].eq(False).fillna(False)]
    if apart.empty:
        return []
    labels = {cell: row.label for row in configurations.itertuples() for cell in row.cells}
    cells = configurations.loc[of_reference(configurations), "cells"].explode()
    full = samples[samples["cell"].isin(cells)].drop_duplicates(["model", "task", "sample"])
    full = full.set_index(["model", "task", "sample"])["score"].rename("full_score")
    apart = apart.join(full, on=["model", "task", "sample"])
    pairs = list(zip(apart["answer"].fillna(""), apart["fullkv_answer"].fillna(""), strict=True))
    names = [f"{cell} {doc}" for cell, doc in zip(apart["cell"], apart["doc_id"], strict=True)]
    apart = apart.assign(
        lost=apart["full_score"] - apart["score"],
        similarity=[Levenshtein.normalized_similarity(*pair) for pair in pairs],
        # Where many are as bad: first what went wrong with the larger budget, then an arbitrary, fixed order.
        draw=[crc32(name.encode()) for name in names],
        label=apart["cell"].map(labels),
    )
    keys = ["model", "task", "method"]
    apart = apart.sort_values(
        ["lost", "similarity", "budget", "draw"], ascending=[False, True, False, True], na_position="last"
    )
    chosen = apart.drop_duplicates([*keys, "doc_id"]).groupby(keys, sort=False).head(count)
    wanted = (
        *("model", "label", "task", "budget", "seed", "doc_id", "question", "target", "answer"),
        *("fullkv_answer", "score", "full_score", "lost", "similarity", "effective_budget", "prompt_tokens"),
    )
    return [{name: plain(row[name]) for name in wanted} for _, row in chosen.iterrows()]
