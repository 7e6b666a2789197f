"""The ceiling for scores: what the answer of the whole cache attends to."""

from __future__ import annotations

import torch

from sparsemm_eval.methods.base import Method, PromptView, Score, Style
from sparsemm_eval.methods.snapkv import uniform
from sparsemm_eval.methods.window_attention import KERNEL_SIZE, POOLING, smooth


def answer_attention(view: PromptView) -> torch.Tensor:
    """Attention FullKV's own answer pays, summed over its tokens, mean over the group: float32 [B, K, N].

    No method can know it: a first pass answers with the whole cache, and attention of the rows that its
    tokens came from is smoothed as SnapKV's is.
    """

    def of_prompt(one: PromptView) -> torch.Tensor:
        return smooth(one.received[one.layer], one.config.kernel_size, one.config.pooling)[0]

    return view.by_row(of_prompt)


METHOD = Method(
    name="oracle",
    title="oracle",
    paper="a ceiling, not a method",
    meaning="SnapKV's budgets, filled by what FullKV's own answer attends to",
    score=Score(
        "oracle",
        answer_attention,
        "attention of FullKV's own answer",
        (KERNEL_SIZE, POOLING),
        ("answer_attention",),
    ),
    allocate=uniform,
    style=Style("#9e9d24", "*"),
)
