"""Intervals cover what they promise, and differences are what textbooks and loops say."""

from itertools import product
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sparsemm_eval.study.statistics import (
    holm,
    mean_interval,
    mean_of_differences,
    mean_of_shares,
    paired_difference,
)

COUNTS, RATES = (10, 20, 50, 200), (0.05, 0.5, 0.95)
SHARES = st.floats(0, 1, allow_subnormal=False).map(lambda value: round(value, 3))


def column(values):
    return np.asarray(values, dtype=float)[:, None]


def right_and_wrong(right, count):
    return column([1] * right + [0] * (count - right))


def exact_coverage(interval_of, count, rate):
    """Over all numbers of right answers, each with its binomial probability."""
    covered = 0.0
    for right in range(count + 1):
        low, high = interval_of(right, count)
        if low - 1e-12 <= rate <= high + 1e-12:
            covered += comb(count, right) * rate**right * (1 - rate) ** (count - right)
    return covered


@pytest.mark.parametrize(("count", "rate"), product(COUNTS, RATES))
def test_intervals_of_right_and_wrong_answers_cover(count, rate):
    def ours(right, count):
        found = mean_interval(right_and_wrong(right, count))
        assert found.mean == right / count
        return found.low, found.high

    assert exact_coverage(ours, count, rate) >= 0.93


def test_a_percentile_bootstrap_does_not_cover():
    """The test above can fail: resampled means of 10 answers, mostly wrong, are too often all zero."""

    def percentile(right, count):
        return [stats.binom.ppf(level, count, right / count) / count for level in (0.025, 0.975)]

    assert exact_coverage(percentile, 10, 0.05) < 0.5


def simulated_coverage(draw, truth, rounds=250):
    generator = np.random.default_rng(7)
    hits = 0
    for _ in range(rounds):
        found = mean_interval(*draw(generator))
        hits += found.low <= truth <= found.high
    return hits / rounds


def characters(generator, count):
    """Six of ten transcriptions are right, the others are right in half of their characters on average."""
    return column(np.where(generator.random(count) < 0.6, 1, generator.beta(2, 2, count))), None


def questions_of_images(generator, images):
    """One to five questions on an image, right together more often than alone."""
    rate = generator.beta(0.5, 0.5, images)
    sizes = generator.integers(1, 6, images)
    labels = np.repeat(np.arange(images), sizes)
    return column(generator.random(len(labels)) < rate[labels]), labels


@pytest.mark.parametrize("count", COUNTS)
def test_intervals_of_shares_cover(count):
    assert simulated_coverage(lambda generator: characters(generator, count), 0.6 + 0.4 / 2) >= 0.93


@pytest.mark.parametrize("images", [10, 20, 50])
def test_intervals_of_questions_that_share_images_cover(images):
    assert simulated_coverage(lambda generator: questions_of_images(generator, images), 0.5) >= 0.92


def test_questions_that_share_images_count_for_less():
    scores, labels = questions_of_images(np.random.default_rng(0), 40)
    alone, shared = mean_interval(scores), mean_interval(scores, labels)
    assert alone.mean == shared.mean
    assert shared.high - shared.low > 1.2 * (alone.high - alone.low)
    # Every question twice is no new evidence.
    twice = mean_interval(np.repeat(scores, 2, 0), np.repeat(np.arange(len(scores)), 2))
    assert twice.stderr == pytest.approx(mean_interval(scores, range(len(scores))).stderr)


def test_seeds_are_a_source_of_variance():
    """Three draws that score 0, 1 and 1 on every document say little about a fourth."""
    found = mean_interval(np.tile([0.0, 1.0, 1.0], (20, 1)))
    assert found.mean == pytest.approx(2 / 3)
    assert found.stderr == pytest.approx(sqrt(1 / 3 / 3))
    assert found.low < 0.1
    assert found.high > 0.98


def test_intervals_over_seeds_cover():
    def draw(generator):
        document, seed = generator.normal(0, 0.1, (30, 1)), generator.normal(0, 0.05, (1, 3))
        return 0.5 + document + seed + generator.normal(0, 0.1, (30, 3)), None

    assert simulated_coverage(draw, 0.5) >= 0.93


def test_all_alike_is_not_certain():
    found = mean_interval(right_and_wrong(20, 20))
    assert found.high == 1
    assert 0.75 < found.low < 0.9
    assert paired_difference(right_and_wrong(3, 20), right_and_wrong(3, 20)).high > 0.05


def test_one_document_says_nothing():
    found = mean_interval(column([1.0]))
    assert found.mean == 1
    assert np.isnan([found.low, found.high]).all()
    assert np.isnan(paired_difference(column([1.0]), column([0.0])).p)


def test_scores_beyond_shares_are_resampled():
    values = np.random.default_rng(1).exponential(10, 60)
    found = mean_interval(column(values))
    assert found.low < values.mean() < found.high
    half = stats.t.ppf(0.975, 59) * values.std(ddof=1) / sqrt(60)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.2)
    # BCa follows the skew.
    assert found.high - found.mean > found.mean - found.low


@given(
    st.lists(st.sampled_from([(0, 0), (0, 1), (1, 0), (1, 1)]), min_size=2, max_size=40),
)
def test_paired_differences_of_right_and_wrong_answers(pairs):
    """McNemar's exact test, and Bonett's and Price's interval with Student's quantile, by hand."""
    first, second = (column([pair[side] for pair in pairs]) for side in (0, 1))
    won, lost, count = pairs.count((1, 0)), pairs.count((0, 1)), len(pairs)
    found = paired_difference(first, second)
    assert found.mean == pytest.approx((won - lost) / count)
    p = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert found.p == pytest.approx(p)
    up, down = (won + 1) / (count + 2), (lost + 1) / (count + 2)
    half = stats.t.ppf(0.975, count + 1) * sqrt((up + down - (up - down) ** 2) / (count + 1))
    assert found.low == pytest.approx(max(-1, up - down - half))
    assert found.high == pytest.approx(min(1, up - down + half))


@pytest.mark.parametrize("rates", [(0.05, 0.05), (0.1, 0.02), (0.3, 0.2), (0.4, 0.0)])
@pytest.mark.parametrize("count", COUNTS)
def test_intervals_of_differences_cover(rates, count):
    generator = np.random.default_rng(3)
    won, lost = rates
    hits = 0
    for _ in range(250):
        kind = generator.choice(3, count, p=[won, lost, 1 - won - lost])
        found = paired_difference(column(kind == 0), column(kind == 1))
        hits += found.low <= won - lost <= found.high
    assert hits / 250 >= 0.93


@given(st.lists(st.tuples(SHARES, SHARES), min_size=2, max_size=30))
def test_swapping_the_sides_changes_the_sign_alone(pairs):
    first, second = (column([pair[side] for pair in pairs]) for side in (0, 1))
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert there.mean == pytest.approx(-back.mean)
    assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))
    assert there.detectable == pytest.approx(back.detectable)
    assert 0 <= there.p <= 1


def test_a_paired_difference_sees_what_overlapping_intervals_hide():
    hard = np.arange(100)
    first, second = column(hard < 66), column(hard < 59)
    assert mean_interval(first).low < mean_interval(second).high
    found = paired_difference(first, second)
    assert found.low > 0
    assert found.p < 0.05


def test_the_least_detectable_difference_is_found_in_four_of_five():
    generator = np.random.default_rng(11)
    spread, count = 0.2, 40
    noise = generator.normal(0, spread, (400, count))
    least = np.mean([paired_difference(column(row), column(0 * row)).detectable for row in noise[:40]])
    power = np.mean([stats.ttest_1samp(row + least, 0).pvalue < 0.05 for row in noise])
    assert 0.75 < power < 0.95


def test_a_side_with_one_seed_meets_all_seeds_of_the_other():
    generator = np.random.default_rng(0)
    one, three = generator.random((15, 1)), generator.random((15, 3))
    found = paired_difference(one, three)
    assert found.mean == pytest.approx(one.mean() - three.mean())
    assert found.stderr > 0
    assert paired_difference(generator.random((15, 2)), three).documents == 15


@settings(max_examples=10)  # statsmodels collects garbage at every call
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm(p_values):
    """Step down: the k-th smallest of m times m − k + 1, never below the one before."""
    corrected, largest = {}, 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    found = holm(p_values)
    assert found == pytest.approx([corrected[index] for index in range(len(p_values))])
    with_gap = holm([*p_values, float("nan")])
    assert np.isnan(with_gap[-1])
    assert with_gap[:-1] == pytest.approx(found)


def test_means_over_tasks():
    generator = np.random.default_rng(2)
    tasks = [generator.random((count, 1)) for count in (12, 30)]
    found = mean_of_shares([mean_interval(scores) for scores in tasks], 42)
    assert found.mean == pytest.approx(np.mean([scores.mean() for scores in tasks]))
    assert found.stderr == pytest.approx(np.sqrt(sum(s.var(ddof=1) / len(s) for s in tasks)) / 2)
    # Welch's test of one mean against another is the mean of a difference and a reversed one.
    first, second = (paired_difference(scores, 0 * scores + 0.5) for scores in tasks)
    both = mean_of_differences([first, second])
    assert both.mean == pytest.approx((first.mean + second.mean) / 2)
    assert both.stderr == pytest.approx(np.hypot(first.stderr, second.stderr) / 2)
    assert min(first.freedom, second.freedom) <= both.freedom <= first.freedom + second.freedom
    assert mean_of_shares([mean_interval(right_and_wrong(10, 10))] * 2, 20).low < 0.9


def test_signs_of_few_clusters_are_counted_exactly_enough():
    """All 256 signs of eight differences, by hand."""
    apart = np.array([0.3, 0.1, -0.05, 0.2, 0.15, 0.4, -0.1, 0.25])
    exact = np.mean(
        [abs(np.dot(signs, apart)) >= apart.sum() - 1e-12 for signs in product((-1, 1), repeat=8)]
    )
    found = paired_difference(0.5 + apart[:, None], np.full((8, 1), 0.5))
    assert found.p == pytest.approx(exact, abs=0.01)


def test_seeds_that_do_not_differ_cost_no_degrees_of_freedom():
    scores = np.repeat(right_and_wrong(3, 20), 2, 1)
    assert mean_interval(scores).freedom == pytest.approx(19)
