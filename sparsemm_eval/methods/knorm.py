"""KNorm: keys of small norm are kept."""

from __future__ import annotations

import torch

from sparsemm_eval.methods.base import Method, PromptView, Score, Style, nothing
from sparsemm_eval.methods.snapkv import uniform


def small_norm(view: PromptView) -> torch.Tensor:
    """Minus the L2 norm of the key: float32 [B, K, N]. Nothing is protected, and no question is known.

    The rule of kvpress 0.5.5 (KnormPress).
    """
    return -torch.linalg.vector_norm(view.key.float(), dim=-1)


METHOD = Method(
    name="knorm",
    title="KNorm",
    paper="Devoto et al., EMNLP 2024, arXiv:2406.11430",
    meaning="keys of small norm",
    score=Score("knorm", small_norm, "minus the norm of the key", negative=True),
    allocate=uniform,
    protect=nothing,
    style=Style("#8d6e63", "h"),
)
