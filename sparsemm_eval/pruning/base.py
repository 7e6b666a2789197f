"""What a pruner is, and the arithmetic of leaving tokens out that all pruners share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sparsemm_eval.checks import PositiveShare
from sparsemm_eval.methods.base import Knob

IMAGE_SHARE = Knob("image_share", 0.5, PositiveShare, "share of each sample's own image tokens that stays")


@dataclass(frozen=True)
class Pruner:
    """A way to leave image tokens out, which goes with any method; one without either function resizes.

    Attributes
    ----------
    name : str
        A value of the setting ``prune``.
    title, paper, meaning : str
        The name as papers write it, where it was published, and a few words of what it does.
    pick : callable or None
        ``(features [M, hidden], count) -> int64 [count]``: which of a sample's image features go into the
        text model.
    rank : callable or None
        ``(query [B, H, D], key [B, K, N, D], valid bool [B, N] or None, scaling or None) -> float32 [B, N]``:
        what layer ``prune_layer - 1`` says of the prompt, from its last token's query; the image tokens that
        are ranked highest go on to the layers behind it.
    knobs : tuple of Knob
    """

    name: str
    title: str
    paper: str = ""
    meaning: str = ""
    pick: Callable[[torch.Tensor, int], torch.Tensor] | None = None
    rank: Callable[..., torch.Tensor] | None = None
    knobs: tuple[Knob, ...] = (IMAGE_SHARE,)

    @property
    def resizes(self) -> bool:
        """Whether images are made smaller before they become tokens."""
        return self.pick is None and self.rank is None


def kept_counts(counts: torch.Tensor, share: float) -> torch.Tensor:
    """How many of int64 [B] image tokens stay: the nearest whole number, one at least where there are any.

    Each row's number comes from the row alone, so that it does not matter what is answered beside it.
    """
    return (counts * share).round().long().clamp(min=1).minimum(counts)


def keep_best(rank: torch.Tensor, images: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The ``counts`` [B] image tokens of highest ``rank`` [B, N]; the earlier one wins a tie.

    Parameters
    ----------
    images : torch.Tensor
        bool [B, N].

    Returns
    -------
    torch.Tensor
        bool [B, N], True for image tokens that stay and for nothing else.
    """
    order = rank.masked_fill(~images, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    place = order.argsort(dim=-1)
    return images & (place < counts.to(place.device)[:, None])


def packed(keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the kept tokens of every row come from once they are pushed together to the right.

    Parameters
    ----------
    keep : torch.Tensor
        bool [B, N].

    Returns
    -------
    index, valid : torch.Tensor
        int64 and bool [B, W], W the largest row's count: positions in order. Rows that keep fewer are filled
        on the left with positions that are not kept, where ``valid`` is False.
    """
    width = int(keep.sum(-1).max())
    index = keep.long().argsort(dim=-1, stable=True)[:, keep.shape[1] - width :]
    return index, keep.gather(1, index)
