"""SparseMM: every KV head's budget is window + uniform share + share by its visual score."""

from __future__ import annotations

import torch

from sparsemm_eval.checks import Share
from sparsemm_eval.methods.apportion import SURPLUS, water_fill
from sparsemm_eval.methods.base import Knob, Method, PromptView, Style
from sparsemm_eval.methods.published import MISTRAL, QWEN2VL, mixkv_table, sparsemm_table
from sparsemm_eval.methods.window_attention import WINDOW_ATTENTION

RATIO = Knob("ratio", 0.1, Share, "ρ: uniform share of what is left after the window")


def by_head_score(view: PromptView, scores: torch.Tensor) -> torch.Tensor:
    """The paper's "three-component allocation": int64 [B, K]."""
    return share_by(view, view.config.head_scores.table)


def share_by(view: PromptView, table: torch.Tensor) -> torch.Tensor:
    """Every head has ``ratio`` of the budget beside the window; the rest of the whole model's goes by score.

    Parameters
    ----------
    view : PromptView
    table : torch.Tensor
        float64 [L, H]; the scores of a GQA group's query heads are added up.
    """
    config = view.config

    def shares() -> torch.Tensor:
        return table.view(view.layers, view.kv_heads, -1).sum(-1) / table.sum()  # [L, K]

    share = view.once_per_prompt("shares", shares)
    uniform = int(config.ratio * view.base)
    if config.surplus == "drop":
        scored = (view.base - uniform) * view.layers * view.kv_heads
        kept = (share[view.layer] * scored + uniform).round().to(torch.int64) + config.window
        return kept.expand(view.batch, -1)
    return filled_by(view, share, uniform)


def filled_by(view: PromptView, share: torch.Tensor, uniform: int) -> torch.Tensor:
    """Window and ``uniform`` for every head, the rest of the model's budget by float64 [L, K]: int64 [B, K].

    What a head cannot hold goes to the others, and whole numbers add up exactly.
    """
    config = view.config

    def fill(length: int) -> torch.Tensor:
        floor = torch.full_like(share, uniform + config.window)
        total = config.budget * share.numel()
        return water_fill(floor.flatten(), share.flatten(), cap=length, total=total).view_as(share)

    tables = [view.once_per_prompt(("filled", n), lambda n=n: fill(n)) for n in view.fewest.tolist()]
    return torch.stack([one[view.layer] for one in tables])


METHOD = Method(
    name="sparsemm",
    title="SparseMM",
    paper="Wang et al., ICCV 2025, arXiv:2506.05344",
    meaning="each head's budget follows its visual score",
    score=WINDOW_ATTENTION,
    allocate=by_head_score,
    knobs=(SURPLUS, RATIO),
    needs=("head_scores",),
    published=(
        *sparsemm_table(256, (0.68, 0.52, 0.65, 0.54, 0.73)),
        *mixkv_table(
            MISTRAL, ((61.6, 60.8, 57.6), (51.9, 50.7, 46.2), (65.1, 64.7, 62.8), (51.9, 51.2, 48.9))
        ),
        *mixkv_table(
            QWEN2VL, ((93.5, 91.5, 84.9), (81.2, 79.0, 74.3), (82.0, 81.6, 77.3), (82.0, 81.5, 80.1))
        ),
    ),
    style=Style("#c8460a", "*"),
)
