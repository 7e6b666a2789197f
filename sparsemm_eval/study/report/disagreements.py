"""Samples on which a compressed run's answer is furthest from FullKV's."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import pandas as pd
from rapidfuzz.distance import Levenshtein

from sparsemm_eval.study.json_values import plain
from sparsemm_eval.study.method_knobs import REFERENCE

PER_CELL = 4
LIMIT = 240


def worst(
    cells: pd.DataFrame, samples: pd.DataFrame, knobs: list[str], per_cell: int = PER_CELL, limit: int = LIMIT
) -> list[dict[str, Any]]:
    """The worst disagreements, worst first.

    An answer is the worse the more score it lost against FullKV's, then the less its text resembles FullKV's.

    Parameters
    ----------
    cells, samples : pandas.DataFrame
        Of `results.collect`.
    knobs : list of str
        Crossed knobs, to tell cells apart.
    per_cell, limit : int
        At most so many of a cell's task, and in all.

    Returns
    -------
    list of dict
        With ``lost``, the score below FullKV's (None where samples have none), and ``similarity`` in [0, 1].
    """
    apart = samples[samples["identical"].eq(False).fillna(False)]
    if apart.empty:
        return []
    keys = ["cell", "task"]
    known = cells.set_index(keys)
    full = samples[samples["method"] == REFERENCE].drop_duplicates(["model", "task", "sample"])
    full = full.set_index(["model", "task", "sample"])["score"].rename("full_score")
    apart = apart.join(full, on=["model", "task", "sample"])
    apart = apart.assign(
        lost=apart["full_score"] - apart["score"],
        similarity=[
            Levenshtein.normalized_similarity(answer or "", other or "")
            for answer, other in zip(apart["answer"], apart["fullkv_answer"], strict=True)
        ],
    )
    # Where many are as bad: first what went wrong with the larger budget, then an arbitrary, fixed order.
    apart["draw"] = [
        crc32(f"{cell} {doc}".encode()) for cell, doc in zip(apart["cell"], apart["doc_id"], strict=True)
    ]
    apart = apart.sort_values(
        ["lost", "similarity", "budget", "draw"], ascending=[False, True, False, True], na_position="last"
    )
    chosen = apart.groupby(keys, sort=False).head(per_cell).head(limit)
    return [_entry(row, known.loc[(row["cell"], row["task"])], knobs) for _, row in chosen.iterrows()]


def _entry(row: pd.Series, cell: pd.Series, knobs: list[str]) -> dict[str, Any]:
    names = ("model", "method", "task", "budget", "seed", "doc_id")
    texts = ("question", "target", "answer", "fullkv_answer")
    figures = ("score", "full_score", "lost", "similarity", "effective_budget", "prompt_tokens")
    entry = {name: plain(row[name]) for name in (*names, *texts, *figures)}
    return {
        **entry,
        "knobs": {name: plain(cell[name]) for name in knobs},
        "image": f"{row['task']}/{row['doc_id']}",
    }
