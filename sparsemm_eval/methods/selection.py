"""Which entries are kept: every head's most important positions and the observation window."""

from __future__ import annotations

import torch

from sparsemm_eval.config import CompressionConfig
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.scores.lookup import resolve
from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.methods.allocation import AllocationInput, allocate
from sparsemm_eval.methods.window_attention import window_importance


def kept_mask(
    config: CompressionConfig,
    layer: int,
    num_layers: int,
    query: torch.Tensor,
    key: torch.Tensor,
    valid: torch.Tensor | None = None,
    scaling: float | None = None,
) -> torch.Tensor:
    """Mark the prompt entries that every KV head keeps.

    Parameters
    ----------
    config : CompressionConfig
        With ``head_scores`` already a HeadScores table where the method needs one.
    layer, num_layers : int
        This layer's index and the number of layers.
    query, key : torch.Tensor
        [B, H, N, D] and [B, K, N, D] after RoPE.
    valid : torch.Tensor, optional
        bool [B, N]; False marks left padding, which is never kept.
    scaling : float, optional
        Attention scale; default ``D ** -0.5``.

    Returns
    -------
    torch.Tensor
        bool [B, K, N] on the keys' device.
    """
    batch, kv_heads, length = key.shape[:3]
    everything = torch.ones(batch, length, dtype=torch.bool, device=key.device) if valid is None else valid
    lengths = everything.sum(-1).cpu()
    window = min(config.window, length)
    if not config.compresses or int(lengths.max()) <= config.window:
        return everything[:, None].expand(-1, kv_heads, -1)
    importance = window_importance(
        query,
        key,
        window=window,
        kernel_size=config.kernel_size,
        pooling=config.pooling,
        gqa=config.gqa,
        scaling=scaling,
        valid=valid,
    )
    capacity = allocate(
        AllocationInput(config, layer, num_layers, kv_heads, query.shape[1], lengths, importance)
    )
    kept = everything[:, None].expand(-1, kv_heads, -1).clone()
    kept[..., : length - window] &= _top(importance, everything, capacity - window)
    return kept


def _top(importance: torch.Tensor, valid: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Mark the ``count`` [B, K] best of importance [B, K, P]; the earlier position wins a tie."""
    prefix = importance.shape[-1]
    ranked = importance.masked_fill(~valid[:, None, :prefix], -1.0)
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    chosen = torch.arange(prefix, device=importance.device) < count.to(importance.device)[..., None]
    return torch.zeros_like(chosen).scatter_(-1, order, chosen)


def kept_positions(
    config: CompressionConfig,
    layer: int,
    num_layers: int,
    query: torch.Tensor,
    key: torch.Tensor,
    head_scores: HeadScores | None = None,
    valid: torch.Tensor | None = None,
) -> list[list[torch.Tensor]]:
    """Positions that every KV head of every row keeps after prefill. A pure function.

    Parameters
    ----------
    config : CompressionConfig
        The knobs.
    layer, num_layers : int
        This layer's index and the number of layers.
    query, key : torch.Tensor
        [B, H, N, D] and [B, K, N, D] after RoPE.
    head_scores : HeadScores, optional
        Overrides ``config.head_scores``.
    valid : torch.Tensor, optional
        bool [B, N]; False marks left padding.

    Returns
    -------
    list of list of torch.Tensor
        [B][K] sorted int64 positions in 0 … N-1, observation window included.

    Raises
    ------
    ConfigError
        If ``sparsemm`` has no head scores.
    HeadScoreError
        If the table does not fit [num_layers, H].
    """
    scores = head_scores if head_scores is not None else config.head_scores
    if config.method == "sparsemm":
        if scores is None:
            raise ConfigError("head_scores", None, "a table, a file or a name: method 'sparsemm' needs one")
        table = resolve(scores)
        table.check_fits(num_layers, query.shape[1])
        config = config.replace(head_scores=table)
    mask = kept_mask(config, layer, num_layers, query, key, valid)
    return [[head.nonzero().flatten().cpu() for head in row] for row in mask]
