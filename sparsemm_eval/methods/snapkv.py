"""SnapKV: every KV head keeps its own most attended positions, all heads the same number."""

from __future__ import annotations

import torch

from sparsemm_eval.methods.base import Method, PromptView, Style
from sparsemm_eval.methods.published import MISTRAL, QWEN2VL, mixkv_table, sparsemm_table
from sparsemm_eval.methods.window_attention import WINDOW_ATTENTION


def uniform(view: PromptView, scores: torch.Tensor) -> torch.Tensor:
    """The budget for every KV head: int64 [B, K]."""
    return view.for_all_heads([view.config.budget] * view.batch)


METHOD = Method(
    name="snapkv",
    title="SnapKV",
    paper="Li et al., NeurIPS 2024, arXiv:2404.14469",
    meaning="every head keeps its own most attended positions",
    score=WINDOW_ATTENTION,
    allocate=uniform,
    published=(
        *sparsemm_table(256, (0.64, 0.46, 0.62, 0.50, 0.65)),
        *mixkv_table(
            MISTRAL, ((59.7, 55.2, 47.3), (45.0, 39.0, 31.9), (63.5, 61.0, 57.1), (50.2, 47.5, 42.7))
        ),
        *mixkv_table(
            QWEN2VL, ((88.0, 80.1, 66.5), (77.3, 71.9, 62.4), (80.3, 77.5, 69.9), (81.3, 79.6, 75.5))
        ),
    ),
    style=Style("#0072b2", "s"),
)
