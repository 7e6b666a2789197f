"""The page tasks in one process: accuracy of a reader with masked heads or a compressed cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from sparsemm_eval import CompressionConfig, HeadScores, compress
from sparsemm_eval.heads.masking.experiment import NOTHING, VISUAL, MaskPlan, Measured, Point
from sparsemm_eval.model.masking import masked_heads, random_heads, top_heads
from sparsemm_eval.pages.readers.held_out import documents, mean_and_error, scores

TASKS = {"pages_qa": "exact_match", "pages_ocr": "character_accuracy"}


class PageTasks:
    """The first documents of both page tasks.

    An answer may be 8 tokens longer than the longest expected one; the tasks themselves allow more.

    Parameters
    ----------
    model, processor
        A reader.
    counts : mapping
        Documents per task.
    """

    def __init__(self, model: Any, processor: Any, counts: Mapping[str, int]):
        self.model, self.processor = model, processor
        self.documents = {task: documents(task, counts[task]) for task in TASKS}

    def scores(self, context: AbstractContextManager[Any]) -> dict[str, list[float]]:
        """Every document's score by task, inside a context that changes the model."""
        with context:
            return {task: self._scores(task) for task in TASKS}

    def _scores(self, task: str) -> list[float]:
        rows = self.documents[task]
        longest = max(len(row["answer"]) for row in rows)
        return scores(
            self.model, self.processor, task, rows, max_new_tokens=8 + longest, batch_size=len(rows)
        )

    def masked(self, scores: HeadScores, plan: MaskPlan, point: Point) -> Measured:
        """One point of the masking experiment."""
        best = top_heads(scores, point.share)
        if point.heads == NOTHING:
            heads = []
        elif point.heads == VISUAL:
            heads = best
        else:
            heads = random_heads(scores.num_layers, scores.num_heads, point.share, point.seed, exclude=best)
        found = self.scores(masked_heads(self.model, heads, plan.mode) if heads else nullcontext())
        pairs = {task: mean_and_error(values) for task, values in found.items()}
        return Measured(
            {task: {TASKS[task]: pairs[task][0]} for task in TASKS},
            {task: {TASKS[task]: pairs[task][1]} for task in TASKS},
            {task: len(found[task]) for task in TASKS},
        )

    def compressed(self, config: CompressionConfig) -> dict[str, list[float]]:
        """Scores under a compression."""
        return self.scores(compress(self.model, config))


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} … {self.high:.3f})"


def bootstrap(values: Sequence[float], draws: int = 2000, seed: int = 0) -> Interval:
    """Mean of values with the percentile bootstrap's interval; for tasks these are documents' scores."""
    data = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(data), (draws, len(data)), generator=generator)
    low, high = data[chosen].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(data.mean()), low, high, len(data))
