"""Who reads what in split-KV attention: every segment's slots cut into spans of similar length.

A segment with many entries (a visual head) gets many spans, one with few gets one, so that the programs of a
launch have about equal work. The list is made once per prompt; how far a segment is filled, which grows with
every token, is read by the kernel itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

PROGRAMS = 1024  # spans to aim at: several per multiprocessor, so that late ones fill the gaps
SHORTEST_SPAN = 64  # slots; shorter spans cost more in joining than they win in spreading
SPAN_MULTIPLE = 64  # whole tiles


class WorkList(NamedTuple):
    """Spans of one layer's pool, sorted by segment.

    Attributes
    ----------
    items : torch.Tensor
        int32 [W, 4], W a power of two. Columns: segment; first slot in the pool; entries of the segment
        before the span; slots in the span (0: an idle row that fills W up).
    ranges : torch.Tensor
        int32 [S, 2]: a segment's first item and how many it has.
    """

    items: torch.Tensor
    ranges: torch.Tensor


def plan(starts: torch.Tensor, sizes: torch.Tensor, slots: int, *, programs: int = PROGRAMS) -> WorkList:
    """Cut all segments of a layer into spans.

    The length of a span follows from the sizes, so from the sample. The lists' shapes depend on ``slots``, S
    and ``programs`` only: lists of different prompts fit the same buffers and the same captured CUDA graph.

    Parameters
    ----------
    starts, sizes : torch.Tensor
        int64 [S, R]: the runs of slots that a segment owns, in the order in which they are filled: where each
        begins in the pool, and how many slots it has.
    slots : int
        Slots in the pool, at least all sizes together.
    programs : int
        Spans to aim at.

    Returns
    -------
    WorkList
        On the device of ``starts``.
    """
    segments, runs = starts.shape
    span = span_slots(int(sizes.sum()), programs)
    before_run = sizes.cumsum(1) - sizes
    count = (sizes + span - 1) // span  # [S, R]
    end = count.flatten().cumsum(0)
    item = torch.arange(_rows(segments, slots, programs, int(end[-1])), device=starts.device)
    run = torch.searchsorted(end, item, right=True)
    idle = run == end.numel()
    run = run.clamp_max(end.numel() - 1)
    inside = (item - (end - count.flatten())[run]) * span
    taken = torch.where(idle, 0, (sizes.flatten()[run] - inside).clamp_max(span))
    segment = torch.div(run, runs, rounding_mode="floor")
    columns = segment, starts.flatten()[run] + inside, before_run.flatten()[run] + inside, taken
    first = (end - count.flatten()).view(segments, runs)[:, 0]
    ranges = torch.stack([first, count.sum(1)], dim=1)
    return WorkList(torch.stack(columns, dim=1).to(torch.int32), ranges.to(torch.int32))


def span_slots(slots: int, programs: int = PROGRAMS) -> int:
    """Slots per span: whole tiles, and no more spans than ``programs`` where that can be."""
    wanted = max(SHORTEST_SPAN, -(-slots // programs))
    return -(-wanted // SPAN_MULTIPLE) * SPAN_MULTIPLE


def _rows(segments: int, slots: int, programs: int, needed: int) -> int:
    """W: what any sample of S segments in a pool can need.

    Whole spans, and a shorter last one for each run. A segment has its prompt's run and one for generated
    tokens, or several of four shortest spans each.
    """
    most = min(programs, -(-slots // SHORTEST_SPAN)) + 2 * segments + slots // SHORTEST_SPAN // 4
    return power_of_two(max(most, needed))


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least ``number``."""
    return 1 << max(number - 1, 0).bit_length()
