"""Standard errors and confidence intervals of a mean by resampling the samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsemm_eval.errors import ConfigError

RESAMPLES = 2000
LEVEL = 0.95
# Draws held at a time, 64 MB of counts.
_BLOCK = 8_000_000


@dataclass(frozen=True)
class Interval:
    """What the resampled means say.

    Attributes
    ----------
    stderr : float
        Their standard deviation.
    low, high : float
        Percentile interval.
    """

    stderr: float
    low: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """The interval of ``factor`` times the mean, factor >= 0."""
        return Interval(self.stderr * factor, self.low * factor, self.high * factor)


def resampled_means(values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Means of samples drawn with replacement.

    Drawing n of n values is drawing how often each distinct value comes up, which is one multinomial draw and
    takes memory by distinct values, two for a task of right and wrong answers.

    Parameters
    ----------
    values : sequence of float
        [n], n >= 1, finite.
    resamples : int
    seed : int

    Returns
    -------
    numpy.ndarray
        float64 [resamples].

    Raises
    ------
    ConfigError
        If there are no values, or one is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ConfigError("values", array.shape, "a list of at least one finite number")
    if resamples < 2:
        raise ConfigError("resamples", resamples, "an integer >= 2")
    distinct, counts = np.unique(array, return_counts=True)
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(distinct))
    means = [
        generator.multinomial(len(array), counts / len(array), size=min(block, resamples - start)) @ distinct
        for start in range(0, resamples, block)
    ]
    return np.concatenate(means) / len(array)


def mean_interval(
    values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Interval:
    """Standard error and percentile interval of the mean of independent samples.

    Parameters
    ----------
    values : sequence of float
        [n], one per sample.
    resamples, seed
        As in `resampled_means`.
    level : float
        Coverage of the interval, in (0, 1).

    Raises
    ------
    ConfigError
        As `resampled_means`, or if ``level`` is out of range.
    """
    if not 0 < level < 1:
        raise ConfigError("level", level, "a number between 0 and 1")
    means = resampled_means(values, resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(means.std(ddof=1)), float(low), float(high))
