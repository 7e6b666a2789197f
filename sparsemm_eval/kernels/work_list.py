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
        int32 [W, 4], W a power of two. Columns: segment; first slot in the pool; slots of the segment before
        the span; slots in the span (0: an idle row that fills W up).
    ranges : torch.Tensor
        int32 [S, 2]: a segment's first item and how many it has.
    """

    items: torch.Tensor
    ranges: torch.Tensor


def plan(offset: torch.Tensor, capacity: torch.Tensor, slots: int, *, programs: int = PROGRAMS) -> WorkList:
    """Cut all segments of a layer into spans.

    Shapes depend on ``slots``, S and ``programs`` only and nothing waits for the device, so lists of
    different prompts fit the same buffers and the same captured CUDA graph.

    Parameters
    ----------
    offset, capacity : torch.Tensor
        int64 [S], any device: a segment's first slot in the pool and how many it owns, room for generated
        tokens included.
    slots : int
        Slots in the pool, at least all capacities together.
    programs : int
        Spans to aim at.

    Returns
    -------
    WorkList
        On the device of ``offset``.
    """
    segments = len(offset)
    span = span_slots(slots, programs)
    count = (capacity + span - 1) // span
    end = count.cumsum(0)
    first = end - count
    # every segment's last span may be a short one, hence one more per segment
    item = torch.arange(power_of_two(-(-slots // span) + segments), device=offset.device)
    segment = torch.searchsorted(end, item, right=True)
    idle = segment == segments
    segment = segment.clamp_max(segments - 1)
    before = (item - first[segment]) * span
    taken = torch.where(idle, 0, (capacity[segment] - before).clamp_max(span))
    items = torch.stack([segment, offset[segment] + before, before, taken], dim=1)
    return WorkList(items.to(torch.int32), torch.stack([first, count], dim=1).to(torch.int32))


def span_slots(slots: int, programs: int = PROGRAMS) -> int:
    """Slots per span of a pool: whole tiles, and no more spans than ``programs`` where that can be."""
    wanted = max(SHORTEST_SPAN, -(-slots // programs))
    return -(-wanted // SPAN_MULTIPLE) * SPAN_MULTIPLE


def refill(static: WorkList, new: WorkList) -> None:
    """Replace a list's contents, not its addresses, so that a captured CUDA graph reads the new one."""
    static.items.copy_(new.items)
    static.ranges.copy_(new.ranges)


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least ``number``."""
    return 1 << max(number - 1, 0).bit_length()
