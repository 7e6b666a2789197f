"""Which entries are kept: score, allocate, protect, and each head's best entries within its number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.methods.base import PromptView, Settings


def keep(config: Settings, views: Sequence[PromptView]) -> list[torch.Tensor]:
    """Mark the prompt entries that every KV head keeps: what the cache does, layer by layer. Pure.

    Parameters
    ----------
    config : CompressionConfig
        With a HeadScores table in ``head_scores`` where the method needs one.
    views : sequence of PromptView
        One per layer, in order.

    Returns
    -------
    list of torch.Tensor
        bool [B, K, N] per layer, on the views' device.

    Raises
    ------
    ConfigError
        If head scores are needed and are no table, or the method breaks its contract.
    HeadScoreError
        If the table does not fit [layers, H].
    """
    shared: dict = {}
    views = [
        replace(view, config=config, layer=layer, layers=len(views), shared=shared)
        for layer, view in enumerate(views)
    ]
    if views and "head_scores" in config.needs:
        if not isinstance(config.head_scores, HeadScores):
            raise ConfigError("head_scores", config.head_scores, f"a HeadScores table, for {config.method}")
        config.head_scores.check_fits(len(views), views[0].heads)
    return [keep_layer(view) for view in views]


@torch.no_grad()  # which entries are kept has no gradient
def keep_layer(view: PromptView) -> torch.Tensor:
    """``keep`` of one layer, whose view has its config: bool [B, K, N]."""
    config, lengths = view.config, view.lengths[:, None]
    everything = view.everything[:, None].expand(-1, view.kv_heads, -1)
    # a prompt that fits into the mean budget is left whole: nothing would be gained by cutting it
    if not config.evicts or int(lengths.max()) <= config.budget:
        return everything
    scores = _shaped("score", view, config.score_in_use.function(view), (view.kv_heads, view.length))
    wanted = _shaped("allocate", view, config.rule.allocate(view, scores), (view.kv_heads,))
    wanted = torch.minimum(torch.where(lengths <= config.budget, lengths, wanted), lengths)
    protected = config.rule.protect(view)
    protected = (protected[:, None] if protected.ndim == 2 else protected) & everything
    return protected | _best(scores, everything & ~protected, wanted.to(scores.device) - protected.sum(-1))


def _best(scores: torch.Tensor, candidates: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Mark the ``count`` [B, K] best candidates [B, K, N]; the earlier position wins a tie."""
    order = scores.masked_fill(~candidates, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    chosen = torch.arange(scores.shape[-1], device=scores.device) < count[..., None]
    return torch.zeros_like(chosen).scatter_(-1, order, chosen) & candidates


def _shaped(part: str, view: PromptView, found: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if tuple(found.shape) != (view.batch, *shape):
        wanted = "[B, K, N]" if len(shape) == 2 else "[B, K]"
        remedy = f"{wanted}, here {(view.batch, *shape)}"
        raise ConfigError(f"{part} of method {view.config.method}", tuple(found.shape), remedy)
    return found
