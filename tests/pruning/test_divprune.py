import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsemm_eval.pruning.divprune import most_diverse


def by_loops(features, count):
    """Greedy max-min over a table of distances."""
    rows = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in features]
    apart = [[1 - sum(a * b for a, b in zip(one, two, strict=True)) for two in rows] for one in rows]
    every = range(len(rows))
    picked = []
    for _ in range(count):
        others = {i: picked or [j for j in every if j != i] for i in every if i not in picked}
        nearest = {i: min((apart[i][j] for j in js), default=0.0) for i, js in others.items()}
        picked.append(max(nearest, key=nearest.get))
    return sorted(picked)


def test_it_is_greedy_max_min():
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for count in (1, 2, 13, 39, 40):
        assert most_diverse(features, count).tolist() == by_loops(features.tolist(), count)


def test_clusters_are_all_met():
    centres = torch.eye(4).repeat_interleave(5, 0)
    features = centres + 0.01 * torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    assert {place // 5 for place in most_diverse(features, 4).tolist()} == {0, 1, 2, 3}


@given(st.integers(1, 30), st.integers(1, 3), st.integers(0, 99), st.data())
def test_no_token_is_picked_twice_even_among_equal_ones(size, kinds, seed, data):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(kinds, 4, generator=generator)[torch.randint(kinds, (size,), generator=generator)]
    count = data.draw(st.integers(1, size))
    picked = most_diverse(features, count)
    assert len(set(picked.tolist())) == count
    assert picked.tolist() == sorted(picked.tolist())
    assert sorted(most_diverse(features, size).tolist()) == list(range(size))
    if count >= len(features.unique(dim=0)):  # with as many picks as kinds, every kind is there
        assert len(features[picked].unique(dim=0)) == len(features.unique(dim=0))


def test_no_order_of_the_features_is_preferred():
    features = torch.randn(25, 5, generator=torch.Generator().manual_seed(2))
    order = torch.randperm(25, generator=torch.Generator().manual_seed(3))
    assert set(order[most_diverse(features[order], 9)].tolist()) == set(most_diverse(features, 9).tolist())


def test_half_precision_and_features_of_zero():
    features = torch.randn(20, 8, generator=torch.Generator().manual_seed(4)).bfloat16()
    features[3] = features[7] = 0
    assert len(most_diverse(features, 20).unique()) == 20
