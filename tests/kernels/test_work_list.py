"""Spans cover every slot of every segment once, in lists whose shape does not depend on the prompt."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsemm_eval.kernels import work_list
from sparsemm_eval.kernels.work_list import plan


def starts_of(sizes, gap=0):
    """Runs one after the other, the first ones of all segments before the second ones."""
    ends = sizes.T.flatten().cumsum(0).view(sizes.T.shape).T
    return ends - sizes + gap


@st.composite
def runs(draw):
    """Sizes [S, R]: prompts of any length, then chunks of one size."""
    prompts = draw(st.lists(st.integers(0, 700), min_size=1, max_size=9))
    chunks, chunk = draw(st.integers(0, 4)), draw(st.sampled_from([32, 64, 256]))
    return torch.tensor([[prompt, *[chunk] * chunks] for prompt in prompts])


@given(
    sizes=runs(),
    gap=st.integers(0, 90),
    spare=st.integers(0, 500),
    programs=st.sampled_from([1, 3, 50]),
)
def test_every_slot_is_in_one_span(sizes, gap, spare, programs):
    starts = starts_of(sizes, gap)
    items, ranges = plan(starts, sizes, int(sizes.sum()) + gap + spare, programs=programs)
    for segment, (first, count) in enumerate(ranges.tolist()):
        covered = []
        for owner, slot, before, slots in items[first : first + count].tolist():
            assert owner == segment
            assert slots > 0
            assert before == len(covered)
            covered += range(slot, slot + slots)
        owned = zip(starts[segment].tolist(), sizes[segment].tolist(), strict=True)
        assert covered == [slot for start, size in owned for slot in range(start, start + size)]
    assert int(items[:, 3].sum()) == int(sizes.sum())  # the other rows are idle


@given(prompts=st.lists(st.integers(0, 700), min_size=3, max_size=3), chunks=st.integers(0, 8))
def test_shape_does_not_depend_on_the_prompt(prompts, chunks):
    sizes = torch.tensor([[prompt, *[256] * chunks] for prompt in prompts])
    static = plan(torch.tensor([[0], [5], [9]]), torch.tensor([[5], [4], [7]]), 3 * (700 + 8 * 256))
    new = plan(starts_of(sizes), sizes, 3 * (700 + 8 * 256))
    assert new.items.shape == static.items.shape
    assert new.ranges.shape == static.ranges.shape
    assert len(new.items).bit_count() == 1


def test_long_segments_get_many_spans_of_the_same_length():
    capacity = torch.tensor([64, 65536, 192])
    sizes = capacity[:, None]
    items, ranges = plan(starts_of(sizes), sizes, int(capacity.sum()), programs=128)
    assert ranges[:, 1].tolist() == [1, 114, 1]
    assert items[1:114, 3].unique().tolist() == [576]


def test_span_count_stays_near_the_aim():
    for slots in (1 << 13, 1 << 17, 1 << 20, (1 << 25) + 1):
        assert -(-slots // work_list.span_slots(slots)) <= work_list.PROGRAMS
    assert work_list.span_slots(100) == work_list.SHORTEST_SPAN
