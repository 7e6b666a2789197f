"""DivPrune: the image tokens that are most unlike each other go into the text model."""

from __future__ import annotations

import torch

from sparsemm_eval.pruning.base import Pruner


def most_diverse(features: torch.Tensor, count: int) -> torch.Tensor:
    """Greedy max-min diversity by cosine distance.

    First the feature whose nearest neighbour is farthest away, then always the one that is farthest from all
    that were picked. Unlike in the published code, what was picked is out of the question: among equal
    features that would return one several times.

    Parameters
    ----------
    features : torch.Tensor
        [M, hidden].
    count : int
        At most M.

    Returns
    -------
    torch.Tensor
        int64 [count], ascending, without duplicates.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    gram = unit @ unit.T
    others = gram.clone().fill_diagonal_(-torch.inf)
    distance = 1 - others.max(dim=-1).values  # to the nearest one; infinite for a single feature
    nearest = torch.full_like(distance, torch.inf)
    picked = torch.empty(count, dtype=torch.int64, device=features.device)
    for place in range(count):
        best = distance.argmax(dim=-1, keepdim=True)
        picked[place : place + 1] = best
        # indices stay on the device, so that no pick waits for it; infinity marks what was picked
        nearest = torch.minimum(nearest, 1 - gram.index_select(0, best)[0]).index_fill_(0, best, -torch.inf)
        distance = nearest
    return picked.sort().values


PRUNER = Pruner(
    name="divprune",
    title="DivPrune",
    paper="Alvar et al., CVPR 2025, arXiv:2503.02175",
    meaning="the image features that are most unlike each other go into the text model",
    pick=most_diverse,
)
