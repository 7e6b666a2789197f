"""The control for SparseMM: its rule with head scores drawn at random."""

from __future__ import annotations

import torch

from sparsemm_eval.checks import Seed
from sparsemm_eval.methods.apportion import SURPLUS
from sparsemm_eval.methods.base import Knob, Method, PromptView, Style
from sparsemm_eval.methods.sparsemm import RATIO, share_by
from sparsemm_eval.methods.window_attention import WINDOW_ATTENTION

SEED = Knob("seed", 0, Seed, "of what is drawn at random", draws=True)


def by_random_score(view: PromptView, scores: torch.Tensor) -> torch.Tensor:
    """SparseMM's allocation by scores drawn uniformly, once for the whole model: int64 [B, K]."""

    def table() -> torch.Tensor:
        generator = torch.Generator().manual_seed(view.config.seed)
        return torch.rand(view.layers, view.heads, generator=generator, dtype=torch.float64)

    return share_by(view, view.once_per_prompt("random table", table))


METHOD = Method(
    name="random",
    title="random scores",
    paper="control in Wang et al., ICCV 2025",
    meaning="SparseMM's rule with random scores",
    score=WINDOW_ATTENTION,
    allocate=by_random_score,
    knobs=(SURPLUS, RATIO, SEED),
    style=Style("#a8487f", "X"),
)
