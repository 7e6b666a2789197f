"""The page tasks in one process: accuracy of a reader with masked heads or a compressed cache."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from sparsemm_eval import CompressionConfig, HeadScores, compress
from sparsemm_eval.heads.masking.experiment import NOTHING, VISUAL, MaskPlan, Measured, Point
from sparsemm_eval.lmms.tasks import PAGE_METRICS as TASKS
from sparsemm_eval.methods.head_masking import random_heads, top_heads
from sparsemm_eval.model.masked_heads import masked_heads
from sparsemm_eval.pages.readers.reading import documents, mean_and_error, scores


class PageTasks:
    """A reader and the first documents of both page tasks; ``counts`` says how many of each task.

    An answer may be 8 tokens longer than the longest expected one. The tasks themselves allow more.
    """

    def __init__(self, model: Any, processor: Any, counts: Mapping[str, int]):
        self.model, self.processor = model, processor
        self.documents = {task: documents(task, counts[task]) for task in TASKS}

    def scores(self, context: AbstractContextManager[Any]) -> dict[str, list[float]]:
        """Every document's score by task, inside a context that changes the model."""
        found = {}
        with context:
            for task, rows in self.documents.items():
                limit = 8 + max(len(row["answer"]) for row in rows)
                batch = {"max_new_tokens": limit, "batch_size": len(rows)}
                found[task] = scores(self.model, self.processor, task, rows, **batch)
        return found

    def masked(self, scores: HeadScores, plan: MaskPlan, point: Point) -> Measured:
        """One point of the masking experiment."""
        heads = best = top_heads(scores, point.share)
        if point.heads not in (NOTHING, VISUAL):
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
