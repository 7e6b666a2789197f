"""Spans cover every slot of every segment once, in lists whose shape does not depend on the prompt."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsemm_eval.kernels import work_list
from sparsemm_eval.kernels.work_list import plan


def offsets_of(capacity, gap=0):
    return capacity.cumsum(0) - capacity + gap


capacities = st.lists(st.integers(0, 700), min_size=1, max_size=9).map(torch.tensor)


@given(
    capacity=capacities,
    gap=st.integers(0, 90),
    spare=st.integers(0, 500),
    programs=st.sampled_from([1, 3, 50]),
)
def test_every_slot_is_in_one_span(capacity, gap, spare, programs):
    offset = offsets_of(capacity, gap)
    items, ranges = plan(offset, capacity, int(capacity.sum()) + gap + spare, programs=programs)
    for segment, (first, count) in enumerate(ranges.tolist()):
        covered = []
        for owner, slot, before, slots in items[first : first + count].tolist():
            assert owner == segment
            assert slots > 0
            assert slot - int(offset[segment]) == before == len(covered)
            covered += range(slot, slot + slots)
        assert covered == list(range(int(offset[segment]), int(offset[segment] + capacity[segment])))
    assert int(items[:, 3].sum()) == int(capacity.sum())  # the other rows are idle


@given(capacity=capacities, other=st.randoms(use_true_random=False))
def test_shape_does_not_depend_on_the_prompt(capacity, other):
    slots = 9 * 700
    shifted = capacity.tolist()
    other.shuffle(shifted)
    shifted = torch.tensor(shifted) // 2
    static, new = (plan(offsets_of(c), c, slots) for c in (capacity, shifted))
    address = static.items.data_ptr()
    work_list.refill(static, new)
    assert static.items.data_ptr() == address
    assert static.items.equal(new.items)
    assert static.ranges.equal(new.ranges)
    assert len(new.items).bit_count() == 1


def test_long_segments_get_many_spans_of_the_same_length():
    capacity = torch.tensor([64, 65536, 192])
    items, ranges = plan(offsets_of(capacity), capacity, int(capacity.sum()), programs=128)
    assert ranges[:, 1].tolist() == [1, 114, 1]
    assert items[1:114, 3].unique().tolist() == [576]


def test_span_count_stays_near_the_aim():
    for slots in (1 << 13, 1 << 17, 1 << 20, (1 << 25) + 1):
        assert -(-slots // work_list.span_slots(slots)) <= work_list.PROGRAMS
    assert work_list.span_slots(100) == work_list.SHORTEST_SPAN
