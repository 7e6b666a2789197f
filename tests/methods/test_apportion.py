import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemm_eval.methods.apportion import water_fill

weights = st.lists(st.floats(0, 100, allow_subnormal=False), min_size=1, max_size=40)


@settings(max_examples=200)
@given(weights=weights, floor=st.integers(0, 20), cap=st.integers(1, 200), total=st.integers(0, 5000))
def test_totals_and_caps_are_exact(weights, floor, cap, total):
    weight = torch.tensor(weights, dtype=torch.float64)
    given_out = water_fill(torch.full_like(weight, floor), weight, cap=cap, total=total)
    assert int(given_out.sum()) == min(total, cap * len(weights))
    assert int(given_out.min()) >= 0
    assert int(given_out.max()) <= cap
    if total >= min(floor, cap) * len(weights):
        assert int(given_out.min()) >= min(floor, cap)


def test_weights_too_small_to_divide_by():
    """A level that gives 1e-308 a whole entry is no number; this did not end."""
    weight = torch.tensor([72.8, 2.3e-308, 0.0, 2.3e-308, 0.0], dtype=torch.float64)
    given_out = water_fill(torch.full_like(weight, 13), weight, cap=80, total=203)
    assert given_out.tolist() == [80, 48, 13, 49, 13] or given_out.tolist() == [80, 49, 13, 48, 13]


@settings(max_examples=100)
@given(weights=weights, cap=st.integers(1, 100), total=st.integers(0, 2000))
def test_more_weight_never_gets_less(weights, cap, total):
    weight = torch.tensor(sorted(weights), dtype=torch.float64)
    given_out = water_fill(torch.zeros_like(weight), weight, cap=cap, total=total)
    # largest remainders may put neighbours one apart, never more
    assert all(b >= a - 1 for a, b in zip(given_out.tolist(), given_out.tolist()[1:], strict=False))


@settings(max_examples=100)
@given(weights=weights, cap=st.integers(1, 100), total=st.integers(0, 2000))
def test_monotonic_in_the_total_up_to_rounding(weights, cap, total):
    weight = torch.tensor(weights, dtype=torch.float64)
    floor = torch.zeros_like(weight)
    less = water_fill(floor, weight, cap=cap, total=total)
    more = water_fill(floor, weight, cap=cap, total=total + 1)
    assert bool((more >= less - 1).all())


def test_a_full_head_keeps_its_entries_beside_one_of_next_to_no_weight():
    weight = torch.tensor([11.0, 6.68e-140], dtype=torch.float64)
    floor = torch.zeros_like(weight)
    assert water_fill(floor, weight, cap=15, total=15).tolist() == [15, 0]
    assert water_fill(floor, weight, cap=15, total=16).tolist() == [15, 1]


def test_what_a_full_head_cannot_take_goes_to_the_others_by_weight():
    floor = torch.tensor([2.0, 2.0, 2.0], dtype=torch.float64)
    weight = torch.tensor([100.0, 3.0, 1.0], dtype=torch.float64)
    assert water_fill(floor, weight, cap=10, total=22).tolist() == [10, 8, 4]


def test_weightless_heads_take_what_is_left_evenly():
    floor = torch.zeros(4, dtype=torch.float64)
    weight = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert water_fill(floor, weight, cap=5, total=11).tolist() == [5, 2, 2, 2]
