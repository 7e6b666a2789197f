"""KeyDiff: keys that differ from the mean key are kept."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sparsemm_eval.methods.base import Method, PromptView, Score, Style, nothing
from sparsemm_eval.methods.snapkv import uniform


def mean_direction(key: torch.Tensor) -> torch.Tensor:
    """Mean of the normalised keys of one prompt, not normalised again: [K, n, D] -> [K, 1, D]."""
    return F.normalize(key, dim=-1).mean(-2, keepdim=True)


def difference(view: PromptView) -> torch.Tensor:
    """Minus the cosine between a key and the mean direction of all keys: float32 [B, K, N].

    The rule of kvpress 0.5.5 (KeyDiffPress). The paper works block by block while a long prompt is read; here
    the prompt is one block. Nothing is protected, and no question is known.
    """

    def of_prompt(one: PromptView) -> torch.Tensor:
        key = one.key[0].float()
        return -F.cosine_similarity(key, mean_direction(key), dim=-1)

    return view.by_row(of_prompt)


METHOD = Method(
    name="keydiff",
    title="KeyDiff",
    paper="Park et al., 2025, arXiv:2504.15364",
    meaning="keys that differ from the mean key",
    score=Score("keydiff", difference, "minus the cosine with the mean key", negative=True),
    allocate=uniform,
    protect=nothing,
    style=Style("#00838f", "<"),
)
