"""Spans cover every slot of every segment once, in lists whose shape does not depend on the prompt."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparsemm_eval.kernels.work_list import TILE, plan, rows

LAYERS = st.lists(st.lists(st.integers(0, 3000), min_size=5, max_size=5), min_size=1, max_size=4)


@given(lengths=LAYERS, room=st.integers(1, 300), programs=st.sampled_from([1, 3, 16, 264]))
def test_every_slot_is_in_one_span(lengths, room, programs):
    lengths = np.array(lengths)
    items, ranges = plan(lengths, lengths + room, programs)
    assert items.shape == (len(lengths), rows(5, programs), 4)
    assert ranges.shape == (*lengths.shape, 2)
    for layer, sizes in enumerate(lengths + room):
        for segment, (first, count) in enumerate(ranges[layer]):
            spans = items[layer, first : first + count]
            assert len(spans) == count >= 1
            assert (spans[:, 0] == segment).all()
            assert (spans[:, 2] > 0).all()
            assert spans[:, 1].tolist() == [0, *spans[:-1, 2].cumsum()]
            assert spans[:, 2].sum() == sizes[segment]
            assert (spans[:-1, 2] % TILE == 0).all()
            assert len(set(spans[:-1, 2])) <= 1
        assert items[layer, :, 2].sum() == sizes.sum()  # the other rows are idle


@given(lengths=LAYERS)
def test_no_shorter_spans_would_fit(lengths):
    """Against a search over all lengths, one layer at a time."""
    lengths, programs = np.array(lengths), 16
    items, _ = plan(lengths, lengths + 1, programs)
    for layer, sizes in enumerate(lengths):
        tiles = [max(-(-size // TILE), 1) for size in sizes.tolist()]
        best = next(n for n in range(1, max(tiles) + 1) if sum(-(-t // n) for t in tiles) <= rows(5, 16))
        spans = items[layer][items[layer, :, 2] > 0]
        follows = spans[1:, 0] == spans[:-1, 0]  # all but a segment's last span
        assert (spans[:-1][follows][:, 2] <= best * TILE).all()


def test_a_short_prompt_keeps_all_processors_busy_whatever_was_before():
    for length, count in ((2_048, 32), (32_000, 32), (500_000, 4)):
        items, _ = plan(np.full((1, count), length), np.full((1, count), length + 256), 264)
        assert 132 <= (items[0, :, 2] > 0).sum() <= 264


def test_a_long_head_is_cut_as_finely_as_the_others():
    lengths = np.array([[200] * 31 + [200_000]])
    items, ranges = plan(lengths, lengths + 64, 264)
    assert ranges[0, -1, 1] > 200
    assert items[0, :, 2].max() < 1.1 * 200_000 / 200


def test_many_segments_have_one_span_each_and_long_ones_more():
    lengths = np.array([[256] * 1000 + [4096] * 24])
    _, ranges = plan(lengths, lengths + 64, 264)
    assert (ranges[0, :1000, 1] == 1).all()
    assert (ranges[0, 1000:, 1] > 3).all()
