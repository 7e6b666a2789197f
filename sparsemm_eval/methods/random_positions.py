"""The control for scores: which positions a head keeps is drawn at random."""

from __future__ import annotations

import torch

from sparsemm_eval.methods.base import Method, PromptView, Score, Style
from sparsemm_eval.methods.random_scores import SEED
from sparsemm_eval.methods.snapkv import uniform


def random_positions(view: PromptView) -> torch.Tensor:
    """Uniform draws, float32 [B, K, N], the same for a prompt whatever it is batched with."""
    scores = torch.zeros(view.batch, view.kv_heads, view.length)
    for head in range(view.kv_heads):
        seed = (view.config.seed * view.layers + view.layer) * view.kv_heads + head
        draws = torch.rand(view.length, generator=torch.Generator().manual_seed(seed % 2**63))
        for row, length in enumerate(view.lengths.tolist()):
            scores[row, head, view.length - length :] = draws[:length]
    return scores.to(view.key.device)


METHOD = Method(
    name="random_positions",
    title="random positions",
    paper="a control",
    meaning="the observation window, and positions drawn at random",
    score=Score("random", random_positions, "drawn at random: the control for every other score", (SEED,)),
    allocate=uniform,
    style=Style("#b0bec5", "x"),
)
