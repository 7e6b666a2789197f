"""FastV: behind its first layers the text model goes on with the image tokens that were looked at most."""

from __future__ import annotations

import torch

from sparsemm_eval.checks import Count
from sparsemm_eval.methods.base import Knob
from sparsemm_eval.pruning.base import IMAGE_SHARE, Pruner

PRUNE_LAYER = Knob(
    "prune_layer", 2, Count, "first layer without the other image tokens, ranked in the one before"
)


def attention_of_last(
    query: torch.Tensor, key: torch.Tensor, valid: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """What a prompt's last token looks at: softmax over all keys in float32, mean over the query heads.

    Parameters
    ----------
    query : torch.Tensor
        [B, H, D] of the last token, after RoPE.
    key : torch.Tensor
        [B, K, N, D] after RoPE.
    valid : torch.Tensor, optional
        bool [B, N]; False marks padding.
    scaling : float, optional
        Default: ``D ** -0.5``.

    Returns
    -------
    torch.Tensor
        float32 [B, N].
    """
    batch, _, dim = query.shape
    grouped = query.float().view(batch, key.shape[1], -1, dim)  # [B, K, H / K, D]
    scores = grouped @ key.float().transpose(-1, -2) * (dim**-0.5 if scaling is None else scaling)
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None, None], -torch.inf)
    return scores.softmax(-1).flatten(1, 2).mean(1)


PRUNER = Pruner(
    name="fastv",
    title="FastV",
    paper="Chen et al., ECCV 2024, arXiv:2403.06764",
    meaning="upper layers get the image tokens that the last prompt token looked at most",
    rank=attention_of_last,
    knobs=(IMAGE_SHARE, PRUNE_LAYER),
)
