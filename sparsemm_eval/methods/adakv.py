"""AdaKV: a layer's heads compete for its budget, with a guaranteed floor for each."""

from __future__ import annotations

import torch

from sparsemm_eval.checks import Share
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.methods.apportion import SURPLUS, water_fill
from sparsemm_eval.methods.base import Knob, Method, PromptView, Settings, Style
from sparsemm_eval.methods.published import sparsemm_table
from sparsemm_eval.methods.window_attention import WINDOW_ATTENTION

ADAKV_FLOOR = Knob("adakv_floor", 0.2, Share, "share of a head's budget that it keeps in any case")


def by_competition(view: PromptView, scores: torch.Tensor) -> torch.Tensor:
    """The best K * base positions of a layer's heads together, counted by head: int64 [B, K].

    On the scores' device: with ``surplus=drop`` nothing needs to know them before the prompt is through.
    """
    return torch.stack([_row(view, scores[row], int(length)) for row, length in enumerate(view.lengths)])


def _row(view: PromptView, scores: torch.Tensor, length: int) -> torch.Tensor:
    config, base = view.config, view.base
    if length <= config.budget:
        return torch.full((view.kv_heads,), length, dtype=torch.int64, device=scores.device)
    candidates = scores[:, view.length - length : view.length - config.window]
    ranked = candidates.sort(dim=-1, descending=True).values
    # official rule: a head counts by how much of its attention its own top `base` would recover
    mass = ranked.sum(-1, keepdim=True).clamp_min(torch.finfo(ranked.dtype).tiny)
    adjusted = ranked * (ranked[:, :base].sum(-1, keepdim=True) / mass)
    winners = adjusted.flatten().topk(view.kv_heads * base).indices // adjusted.shape[1]
    counts = torch.zeros(view.kv_heads, dtype=torch.int64, device=scores.device)
    counts.scatter_add_(0, winners, torch.ones_like(winners))
    floor = int(config.adakv_floor * base)
    if config.surplus == "drop":
        share = (1 - config.adakv_floor) * counts + floor
        return share.round().to(torch.int64) + config.window
    floors = torch.full((view.kv_heads,), float(floor + config.window), dtype=torch.float64)
    weight, total = counts.cpu().double(), config.budget * view.kv_heads
    return water_fill(floors, weight, cap=length, total=total).to(scores.device)


def sums(config: Settings) -> None:
    """Refuse scores whose sums mean nothing."""
    if config.score_in_use.negative:
        remedy = f"a score that is never below zero: adakv adds scores up, and {config.score}'s can be"
        raise ConfigError("score", config.score, remedy)


METHOD = Method(
    name="adakv",
    title="AdaKV",
    paper="Feng et al., 2024, arXiv:2407.11550",
    meaning="a layer's heads compete for its budget",
    score=WINDOW_ATTENTION,
    allocate=by_competition,
    check=sums,
    knobs=(SURPLUS, ADAKV_FLOOR),
    published=sparsemm_table(256, (0.65, 0.48, 0.62, 0.49, 0.66)),
    style=Style("#b26a00", "D"),
)
