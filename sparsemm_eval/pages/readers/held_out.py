"""The page tasks' held-out documents and scores, without lmms-eval in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sparsemm_eval.pages.readers.proof import answer
from sparsemm_eval.tasks import FOLDER
from sparsemm_eval.tasks.pages.metrics import character_accuracy, exact_match

MAX_NEW_TOKENS = {"pages_qa": 16, "pages_ocr": 448}  # as in the tasks' YAML
METRICS = {"pages_qa": exact_match, "pages_ocr": character_accuracy}


def documents(task: str, limit: int | None = None) -> list[dict[str, Any]]:
    """A task's first documents, images decoded; all by default."""
    import datasets

    path = str(FOLDER / "pages" / "data" / f"{task}.parquet")
    rows = datasets.load_dataset("parquet", data_files=path, split="train")
    return list(rows.select(range(min(limit or len(rows), len(rows)))))


def scores(
    model: Any,
    processor: Any,
    task: str,
    rows: Sequence[dict[str, Any]],
    *,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
) -> list[float]:
    """Score of every document under greedy decoding.

    Parameters
    ----------
    model, processor
        A reader; inside a ``compress`` block, under compression.
    task : str
        ``pages_qa`` or ``pages_ocr``.
    rows : sequence of dict
        From `documents`.
    max_new_tokens : int, optional
        The task's own by default.
    batch_size : int
        Rows per ``generate`` call.
    """
    found = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        replies = answer(
            model,
            processor,
            [row["image"].convert("RGB") for row in batch],
            [row["question"] for row in batch],
            max_new_tokens or MAX_NEW_TOKENS[task],
        )
        found += [score_of(task, *pair) for pair in zip(replies, batch, strict=True)]
    return found


def score_of(task: str, reply: str, row: dict[str, Any]) -> float:
    """A reply's score as the task gives it."""
    if task == "pages_qa":
        reply = reply.split("\n")[0]  # the task's `until`
    return METRICS[task](reply, row["answer"])


def mean_and_error(points: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard error of the mean."""
    values = torch.tensor(points, dtype=torch.float64)
    error = values.std() / len(points) ** 0.5 if len(points) > 1 else torch.tensor(0.0)
    return float(values.mean()), float(error)
