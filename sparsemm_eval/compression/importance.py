"""How much the observation window looks at every prompt position: the score that decides what is kept."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def window_importance(
    query: torch.Tensor,
    key: torch.Tensor,
    *,
    window: int,
    kernel_size: int,
    pooling: str = "avg",
    gqa: str = "mean",
    scaling: float | None = None,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of the last ``window`` queries on the positions before them, smoothed over positions.

    SnapKV's score, shared by all methods here: softmax over all keys (float32), mean over the window's rows,
    ``gqa`` reduction over the query heads of a KV head, then pooling with zero padding.

    Parameters
    ----------
    query : torch.Tensor
        [B, H, >= window, D] after RoPE; only the last ``window`` rows are read.
    key : torch.Tensor
        [B, K, N, D] after RoPE.
    window, kernel_size : int
        Observation window and odd pooling width, in positions.
    pooling, gqa : str
        ``avg`` or ``max``; ``mean`` or ``max``.
    scaling : float, optional
        Factor on the scores; default ``D ** -0.5``.
    valid : torch.Tensor, optional
        bool [B, N]; False marks left padding, which receives exactly zero importance.

    Returns
    -------
    torch.Tensor
        float32 [B, K, N - window].
    """
    batch, heads, _, dim = query.shape
    kv_heads, length = key.shape[1], key.shape[2]
    group = heads // kv_heads
    scaling = dim**-0.5 if scaling is None else scaling
    # a GQA group's queries share the keys, so they become extra rows instead of expanded keys
    rows = query[:, :, -window:].reshape(batch, kv_heads, group * window, dim)  # [B, K, G*w, D]
    scores = torch.matmul(rows, key.transpose(2, 3)).float().mul_(scaling)  # [B, K, G*w, N]
    scores = scores.view(batch, kv_heads, group, window, length)
    future = torch.ones(window, window, dtype=torch.bool, device=key.device).triu_(1)
    scores[..., length - window :].masked_fill_(future, float("-inf"))
    if valid is not None:
        scores.masked_fill_(~valid[:, None, None, None, :], torch.finfo(torch.float32).min)
    attention = scores.softmax(-1)[..., : length - window]  # [B, K, G, w, P]
    if valid is not None:
        # rows of the window that are padding themselves look at nothing
        alive = valid[:, length - window :].to(attention.dtype)[:, None, None, :, None]
        attention = attention * alive
    importance = attention.mean(dim=3)
    importance = importance.mean(dim=2) if gqa == "mean" else importance.amax(dim=2)
    return smooth(importance, kernel_size, pooling)


def smooth(importance: torch.Tensor, kernel_size: int, pooling: str) -> torch.Tensor:
    """Pool [B, K, P] over positions with stride 1; zero padding counts in the average."""
    if kernel_size == 1 or importance.shape[-1] == 0:
        return importance
    pool = F.avg_pool1d if pooling == "avg" else F.max_pool1d
    return pool(importance, kernel_size, stride=1, padding=kernel_size // 2)
