"""What a mean over documents says: intervals, paired differences, and corrections for many comparisons.

Documents that share their images are one cluster, and several seeds of a configuration are a second source of
variance, so both are given where there are any: scores are arrays [documents, seeds].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.95
POWER = 0.8
_RESAMPLES = 9999


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; NaN where one cluster of documents leaves it open."""

    mean: float
    low: float
    high: float
    stderr: float  # standard error of the mean
    freedom: float  # its degrees of freedom

    def columns(self) -> dict[str, float]:
        """As columns of tables: ``score``, ``stderr``, ``ci_low`` and ``ci_high``."""
        return {"score": self.mean, "stderr": self.stderr, "ci_low": self.low, "ci_high": self.high}

    def scaled(self, factor: float) -> Self:
        """The same for scores that are ``factor`` times as large, factor >= 0."""
        names = {"mean", "low", "high", "stderr", "detectable"} & self.__dataclass_fields__.keys()
        return replace(self, **{name: factor * getattr(self, name) for name in names})


@dataclass(frozen=True)
class Difference(Interval):
    """How much one configuration scores above another on the same documents."""

    #: Of no difference, two-sided: McNemar's exact test for scores of 0 and 1, a t test where seeds vary,
    #: else a test by flipping signs.
    p: float
    documents: int
    clusters: int  # sets of documents with images of their own
    detectable: float  # the least difference found in four of five such comparisons, at a level of 5 %


def mean_interval(scores: np.ndarray, clusters: Sequence[object] | None = None) -> Interval:
    """The mean of scores with its 95 % interval.

    Scores in [0, 1] get the interval of Agresti and Coull (1998), which is centred as Wilson's and covers
    where Wilson's does not (p = .05, n = 10 and 20). Clusters, seeds, and scores between 0 and 1 enter as a
    number of independent right or wrong answers that would have the same variance (Korn and Graubard, 1998).
    Other scores get a BCa bootstrap of clusters, or a t interval where there are several seeds.
    ``scores`` are float [documents, seeds]; ``clusters`` are one label per document, each document by itself
    by default.
    """
    totals, sizes = _by_cluster(scores, clusters)
    count, seeds = totals.shape
    mean = float(totals.sum() / (sizes.sum() * seeds))
    if count < 2:
        return Interval(mean, np.nan, np.nan, np.nan, 0.0)
    variance, freedom = _variance(_influence(totals, sizes, mean))
    error = float(np.sqrt(variance))
    if scores.min() >= 0 and scores.max() <= 1:
        if seeds == 1 and count == len(scores) and _is_binary(scores):
            return Interval(mean, *_share_interval(mean, count, np.inf), error, freedom)
        trials = mean * (1 - mean) / variance if variance > 0 else count
        return Interval(mean, *_share_interval(mean, trials, freedom), error, freedom)
    if seeds > 1 or variance == 0:
        half = _quantile(freedom) * error
        return Interval(mean, mean - half, mean + half, error, freedom)
    found = stats.bootstrap(
        (totals[:, 0], sizes),
        lambda total, size, axis: total.sum(axis) / size.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), error, freedom)


def mean_of_shares(parts: Sequence[Interval], clusters: int) -> Interval:
    """The mean over independent tasks that are scored in [0, 1] on so many clusters in all."""
    mean, error, freedom = _combined(parts)
    trials = mean * (1 - mean) / error**2 if error else clusters
    return Interval(mean, *_share_interval(mean, trials, freedom), error, freedom)


def paired_difference(
    first: np.ndarray, second: np.ndarray, clusters: Sequence[object] | None = None
) -> Difference:
    """How much ``first`` scores above ``second`` on the same documents.

    The interval is that of Bonett and Price (2012): two more clusters are counted, of which each side wins
    one by the largest difference there is, so that no interval is without width.

    Both are float [documents, seeds]; one side may have a single seed, and then meets all seeds of the other.
    Two sides with different numbers of seeds are averaged over them. ``clusters`` as in `mean_interval`.
    """
    if first.shape[1] != second.shape[1] and 1 not in (first.shape[1], second.shape[1]):
        first, second = first.mean(1, keepdims=True), second.mean(1, keepdims=True)
    apart = first - second
    totals, sizes = _by_cluster(apart, clusters)
    count, seeds = totals.shape
    mean = float(totals.sum() / (sizes.sum() * seeds))
    if count < 2:
        return Difference(mean, np.nan, np.nan, np.nan, 0.0, np.nan, len(apart), count, np.nan)
    largest = float(np.abs(totals / sizes[:, None]).max()) * sizes.mean() or sizes.mean()
    more = np.concatenate([totals, np.full((1, seeds), largest), np.full((1, seeds), -largest)])
    weights = np.concatenate([sizes, np.full(2, sizes.mean())])
    centre = float(more.sum() / (weights.sum() * seeds))
    variance, freedom = _variance(_influence(more, weights, centre))
    error = float(np.sqrt(variance))
    half = _quantile(freedom) * error
    if seeds > 1:
        plain, its_freedom = _variance(_influence(totals, sizes, mean))
        p = _t_test(mean, float(np.sqrt(plain)), its_freedom)
    elif count == len(apart) and _is_binary(first) and _is_binary(second):
        won, lost = int((apart > 0).sum()), int((apart < 0).sum())
        p = float(mcnemar([[0, won], [lost, 0]], exact=True).pvalue) if won + lost else 1.0
    else:
        p = _by_signs(totals[:, 0])
    low, high = centre - half, centre + half
    if np.abs(apart).max() <= 1:
        low, high = max(-1.0, low), min(1.0, high)
    unit = TTestPower().solve_power(nobs=count, alpha=1 - LEVEL, power=POWER)
    detectable = float(unit * error * np.sqrt(count))
    return Difference(mean, low, high, error, freedom, p, len(apart), count, detectable)


def mean_of_differences(parts: Sequence[Difference]) -> Difference:
    """The mean of differences on independent tasks, by a t test."""
    mean, error, freedom = _combined(parts)
    half = _quantile(freedom) * error
    documents, clusters = sum(part.documents for part in parts), sum(part.clusters for part in parts)
    detectable = (_quantile(freedom) + float(stats.t.ppf(POWER, freedom))) * error
    p = _t_test(mean, error, freedom)
    low, high = max(-1.0, mean - half), min(1.0, mean + half)
    return Difference(mean, low, high, error, freedom, p, documents, clusters, detectable)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's method; NaN stays and does not count."""
    found = np.array(p_values, dtype=float)
    known = ~np.isnan(found)
    if known.any():
        found[known] = multipletests(found[known], method="holm")[1]
    return found.tolist()


def _by_cluster(scores: np.ndarray, clusters: Sequence[object] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sums [clusters, seeds] and numbers of documents [clusters]."""
    if clusters is None:
        return scores.astype(float), np.ones(len(scores))
    _, number = np.unique(np.asarray([str(label) for label in clusters]), return_inverse=True)
    totals = np.zeros((number.max() + 1, scores.shape[1]))
    np.add.at(totals, number, scores)
    return totals, np.bincount(number).astype(float)


def _influence(totals: np.ndarray, sizes: np.ndarray, mean: float) -> np.ndarray:
    """What each cluster says of the mean, [clusters, seeds]; larger clusters say more."""
    return (totals - mean * sizes[:, None]) / sizes.mean()


def _variance(table: np.ndarray) -> tuple[float, float]:
    """Variance of the mean of a table [clusters, seeds], both drawn at random, and its degrees of freedom.

    Mean squares of the two-way layout without repetition; degrees of freedom by Satterthwaite.
    """
    count, seeds = table.shape
    rows = float(table.mean(1).var(ddof=1)) * seeds
    if seeds == 1:
        return rows / count, count - 1.0
    columns = float(table.mean(0).var(ddof=1)) * count
    rest = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    noise = float((rest**2).sum()) / ((count - 1) * (seeds - 1))
    # What seeds add to the variance that documents have anyway.
    more = max(0.0, columns - noise)
    if rows + more == 0:
        return 0.0, count - 1.0
    freedom = (rows + more) ** 2 / (rows**2 / (count - 1) + more**2 / (seeds - 1))
    return (rows + more) / (count * seeds), freedom


def _combined(parts: Sequence[Interval]) -> tuple[float, float, float]:
    """Mean of independent means, its standard error, and degrees of freedom by Satterthwaite."""
    variances = np.array([part.stderr**2 for part in parts])
    freedoms = np.array([part.freedom for part in parts])
    freedom = variances.sum() ** 2 / (variances**2 / freedoms).sum() if variances.any() else freedoms.sum()
    error = np.sqrt(variances.sum()) / len(parts)
    return float(np.mean([part.mean for part in parts])), float(error), float(freedom)


def _share_interval(mean: float, trials: float, freedom: float) -> tuple[float, float]:
    """Agresti's and Coull's interval of a share among so many trials, with Student's quantile."""
    # As a level of the normal distribution.
    alpha = 2 * stats.norm.sf(_quantile(freedom))
    low, high = proportion_confint(mean * trials, trials, alpha=alpha, method="agresti_coull")
    return max(0.0, float(low)), min(1.0, float(high))


def _t_test(mean: float, error: float, freedom: float) -> float:
    return float(2 * stats.t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)


def _by_signs(totals: np.ndarray) -> float:
    """Share of random signs under which the differences' sum is as far from 0; these signs are among them."""
    signs = np.random.default_rng(0).choice((-1, 1), (_RESAMPLES, len(totals)))
    return float((1 + (np.abs(signs @ totals) >= abs(totals.sum()) - 1e-12).sum()) / (1 + _RESAMPLES))


def _quantile(freedom: float) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def _is_binary(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0, 1)).all())
