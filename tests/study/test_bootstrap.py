"""Resampling against loops and against what is known of the mean's distribution."""

import random
from statistics import fmean, stdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.study import bootstrap
from sparsemm_eval.study.bootstrap import Interval, mean_interval, resampled_means

SCORES = st.lists(st.floats(0, 1).map(lambda value: round(value, 3)), min_size=1, max_size=40)


def naive_means(values, resamples, seed):
    """Draws one value after the other."""
    draw = random.Random(seed)
    return [fmean(draw.choice(values) for _ in values) for _ in range(resamples)]


def naive_quantile(values, share):
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


@settings(deadline=None, max_examples=40)
@given(SCORES, st.integers(0, 2**31))
def test_interval_is_that_of_the_resampled_means(values, seed):
    means = resampled_means(values, 200, seed).tolist()
    found = mean_interval(values, resamples=200, seed=seed, level=0.9)
    assert found.stderr == pytest.approx(stdev(means), abs=1e-12)
    assert found.low == pytest.approx(naive_quantile(means, 0.05), abs=1e-12)
    assert found.high == pytest.approx(naive_quantile(means, 0.95), abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(SCORES, st.integers(0, 2**31))
def test_means_lie_between_the_extremes_and_are_reproducible(values, seed):
    means = resampled_means(values, 50, seed)
    assert means.shape == (50,)
    assert (means >= min(values) - 1e-12).all()
    assert (means <= max(values) + 1e-12).all()
    np.testing.assert_array_equal(means, resampled_means(values, 50, seed))


@pytest.mark.parametrize("values", [[0, 1, 1, 0, 0, 1, 0, 0], [0.1, 0.5, 0.5, 0.9, 0.33, 0.2, 1.0, 0.0, 0.7]])
def test_same_distribution_as_drawing_one_by_one(values):
    ours = resampled_means(values, 20000, seed=1)
    loops = np.array(naive_means(values, 20000, seed=2))
    assert ours.mean() == pytest.approx(loops.mean(), abs=0.01)
    assert ours.std() == pytest.approx(loops.std(), rel=0.05)
    for share in (0.025, 0.25, 0.75, 0.975):
        assert np.quantile(ours, share) == pytest.approx(
            np.quantile(loops, share), abs=0.13 / len(values) + 1e-9
        )
    # The spread of a mean of n draws from n values, exactly.
    assert ours.std() == pytest.approx(np.std(values) / len(values) ** 0.5, rel=0.03)


def test_blocks_change_nothing_but_memory(monkeypatch):
    values = [0.1, 0.4, 0.4, 0.9]
    whole = resampled_means(values, 1000, seed=3)
    monkeypatch.setattr(bootstrap, "_BLOCK", 7)
    np.testing.assert_array_equal(resampled_means(values, 1000, seed=3), whole)


def test_default_is_at_least_a_thousand_resamples_at_95_percent():
    assert bootstrap.RESAMPLES >= 1000
    covered = 0
    for trial in range(200):
        draw = np.random.default_rng(trial)
        found = mean_interval((draw.random(60) < 0.3).astype(float).tolist(), seed=trial)
        covered += found.low <= 0.3 <= found.high
    # 95 % of 200, less what a percentile interval of 60 samples loses.
    assert 178 <= covered <= 200


def test_no_spread_no_width():
    assert mean_interval([0.5] * 10) == Interval(0.0, 0.5, 0.5)
    assert mean_interval([1.0]).scaled(100) == Interval(0.0, 100.0, 100.0)


def test_scaled():
    assert Interval(0.25, 0.5, 0.75).scaled(4) == Interval(1.0, 2.0, 3.0)


@pytest.mark.parametrize("values", [[], [float("nan")], [float("inf"), 1], [[1, 2]]])
def test_impossible_values(values):
    with pytest.raises(ConfigError, match="finite number"):
        mean_interval(values)


@pytest.mark.parametrize("arguments", [{"resamples": 1}, {"level": 1.0}, {"level": 0}])
def test_impossible_arguments(arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        mean_interval([0, 1], **arguments)
