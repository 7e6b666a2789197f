"""How far two tables of head scores agree."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.methods.head_masking import top_heads

TOP_SHARE = 0.05


@dataclass(frozen=True)
class Agreement:
    """Agreement of two tables of the same model.

    Attributes
    ----------
    spearman : float
        Rank correlation over all heads, ties averaged; nan if one table is constant.
    cosine : float
        Of the tables as vectors.
    overlap : float
        Share of the best 5 % of heads that both have.
    """

    spearman: float
    cosine: float
    overlap: float


def agreement(first: HeadScores, second: HeadScores) -> Agreement:
    """Compare two tables.

    Raises
    ------
    HeadScoreError
        If they are of different shapes, so of different models.
    """
    second.check_fits(first.num_layers, first.num_heads)
    a, b = first.table.flatten(), second.table.flatten()
    best, others = set(top_heads(first, TOP_SHARE)), set(top_heads(second, TOP_SHARE))
    return Agreement(
        spearman=_correlation(ranks(a), ranks(b)),
        cosine=float(a @ b / (a.norm() * b.norm())),
        overlap=len(best & others) / len(best),
    )


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks from 0, equal values sharing the mean of theirs; float64 like ``values`` [n]."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts + 1) / 2)[place]


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / (a.norm() * b.norm()))
