"""Fovea, a method of this project: sharper SparseMM budgets, filled by what stands behind attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sparsemm_eval.checks import Count, NonNegative, Positive, Share
from sparsemm_eval.methods.base import WINDOW, Knob, Method, PromptView, Score, Style
from sparsemm_eval.methods.keydiff import mean_direction
from sparsemm_eval.methods.sparsemm import filled_by
from sparsemm_eval.methods.window_attention import GQA, smooth, window_importance

REACH = Knob("fovea_reach", 13, Count, "positions, itself and those before, whose largest attention counts")
DIVERSITY = Knob("fovea_diversity", 0.0, NonNegative, "λ: weight of key diversity in visual heads")
VISUAL = Knob(
    "fovea_visual", 0.05, Share, "share of the largest head score from which a KV head counts as visual"
)
POWER = Knob("fovea_power", 1.5, Positive, "exponent of the head scores that budgets follow")
UNIFORM = Knob("fovea_ratio", 0.1, Share, "uniform share of what is left after the window")


def _kv_head_scores(view: PromptView) -> torch.Tensor:
    """float64 [L, K]: head scores summed over groups."""
    table = view.config.head_scores.table
    return view.once_per_prompt("fovea scores", lambda: table.view(view.layers, view.kv_heads, -1).sum(-1))


def reach_and_diversity(view: PromptView) -> torch.Tensor:
    """Forward-pooled attention of the window: float32 [B, K, N].

    The largest attention among a position and the ones before it, divided by its mean over all positions
    before the window. In KV heads whose score is at least ``fovea_visual`` of the largest, 1 - cos(key, mean
    key), also divided by its mean, is added ``fovea_diversity`` times: none by default, since on development
    pages it made no difference.
    """
    visual = _kv_head_scores(view)
    visual = (visual >= view.config.fovea_visual * visual.max())[view.layer].to(view.key.device)
    return view.by_row(lambda one: _scores(one, visual))


def _scores(view: PromptView, visual: torch.Tensor) -> torch.Tensor:
    config, past = view.config, view.length - view.config.window
    if past <= 0:
        return torch.zeros(view.kv_heads, view.length, device=view.key.device)
    attention = window_importance(
        view.query, view.key, window=config.window, kernel_size=1, gqa=config.gqa, scaling=view.scaling
    )
    attention = _by_mean(smooth(attention, config.fovea_reach, "forward")[0])
    if config.fovea_diversity:
        key = view.key[0].float()
        diversity = _by_mean(1 - F.cosine_similarity(key, mean_direction(key), dim=-1)[:, :past])
        attention = attention + config.fovea_diversity * visual[:, None] * diversity
    return F.pad(attention, (0, config.window), value=torch.inf)


def _by_mean(raw: torch.Tensor) -> torch.Tensor:
    return raw / raw.mean(-1, keepdim=True).clamp_min(torch.finfo(raw.dtype).tiny)


def by_sharper_score(view: PromptView, scores: torch.Tensor) -> torch.Tensor:
    """Window + uniform share + share by head score to the power ``fovea_power``: int64 [B, K]."""
    config, share = view.config, _kv_head_scores(view)
    share = (share / share.max()) ** config.fovea_power  # by the largest, so that not all become 0
    return filled_by(view, share, int(config.fovea_ratio * view.base))


METHOD = Method(
    name="fovea",
    title="Fovea",
    paper="this project, docs/methods.md",
    meaning="SparseMM's budgets, sharper and all used, filled by what stands behind attended positions",
    score=Score(
        "fovea",
        reach_and_diversity,
        "attention of the window on a position or those before it; key diversity on demand",
        (WINDOW, GQA, REACH, DIVERSITY, VISUAL),
        ("head_scores",),
    ),
    allocate=by_sharper_score,
    knobs=(POWER, UNIFORM),
    needs=("head_scores",),
    style=Style("#d50000", "*"),
)
