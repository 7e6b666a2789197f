"""From scores of single images to one table of head scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from sparsemm_eval.errors import HeadScoreError
from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.heads.scoring.batch_scores import ImageScore


def summarise(images: Mapping[int, ImageScore], provenance: Mapping[str, Any]) -> HeadScores:
    """Average the scores of images and normalise them to a sum of one.

    Parameters
    ----------
    images : mapping
        Scores by image number; any union of partial results.
    provenance : mapping
        What the table comes from, in JSON types.

    Returns
    -------
    HeadScores
        Its provenance also holds ``images``, ``answer_tokens`` and ``tokens`` (those that counted) as
        numbers, ``bad_boxes`` by reason, ``hits`` as [L, H] counts, and ``standard_error`` as [L, H]: of the
        mean over images, on the table's scale; null for a single image.

    Raises
    ------
    HeadScoreError
        If no head ever looked at what it was about to say.
    """
    ordered = [images[index] for index in sorted(images)]
    tokens = sum(image.tokens for image in ordered)
    if not any(float(image.scores.sum()) for image in ordered):
        raise HeadScoreError(
            f"no scores: {tokens} of {sum(image.answer_tokens for image in ordered)} answer tokens in "
            f"{len(ordered)} images counted, and no head looked at any of their boxes. Does the model read "
            "this kind of image, and does the anchor fit it? mode='teacher' does without its answers"
        )
    stack = torch.stack([image.scores for image in ordered])  # [images, L, H]
    mean = stack.mean(0)
    total = mean.sum()
    error = None
    if len(ordered) > 1:
        error = (stack.std(0) / math.sqrt(len(ordered)) / total).tolist()
    return HeadScores(
        mean / total,
        {
            **provenance,
            "images": len(ordered),
            "answer_tokens": sum(image.answer_tokens for image in ordered),
            "tokens": tokens,
            "bad_boxes": dict(sum((Counter(image.bad_boxes) for image in ordered), Counter())),
            "hits": torch.stack([image.hits for image in ordered]).sum(0).tolist(),
            "standard_error": error,
        },
    )
