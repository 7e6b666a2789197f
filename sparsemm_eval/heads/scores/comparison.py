"""How far two tables of head scores agree."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import spearmanr

from sparsemm_eval.heads.scores.table import HeadScores, count_of

TOP_SHARE = 0.05


@dataclass(frozen=True)
class TableAgreement:
    """Agreement of two tables of the same model."""

    spearman: float  # rank correlation over all heads, ties averaged; nan if one table is constant
    cosine: float  # of the tables as vectors
    overlap: float  # share of the best 5 % of heads that both have


def agreement(first: HeadScores, second: HeadScores) -> TableAgreement:
    """Compare two tables.

    Raises
    ------
    HeadScoreError
        If they are of different shapes, so of different models.
    """
    second.check_fits(first.num_layers, first.num_heads)
    a, b = first.table.flatten(), second.table.flatten()
    constant = bool((a == a[0]).all() or (b == b[0]).all())
    count = count_of(TOP_SHARE, len(a))
    best, others = set(first.best_heads(count)), set(second.best_heads(count))
    return TableAgreement(
        spearman=float("nan") if constant else float(spearmanr(a.numpy(), b.numpy()).statistic),
        cosine=float(a @ b / (a.norm() * b.norm())),
        overlap=len(best & others) / count,
    )
