"""Who reads what in split-KV attention: every segment's entries cut into spans of similar length.

A segment is one (row, KV head) pair. One with many entries (a visual head) gets many spans, one with few gets
one, so that the programs of a launch have about equal work and all of a GPU's multiprocessors have some. The
list is made from the sample's own lengths; how far a segment is filled, which grows with every token, is read
by the kernel itself.
"""

from __future__ import annotations

import numpy as np
import torch

TILE = 64  # entries; spans are whole tiles
PROGRAMS_PER_PROCESSOR = 2  # that a multiprocessor works on at once
WITHOUT_A_GPU = 132  # multiprocessors that a list is made for


def programs_of(device: torch.device) -> int:
    """Spans that a device works on at once."""
    if device.type != "cuda":
        return WITHOUT_A_GPU * PROGRAMS_PER_PROCESSOR
    return torch.cuda.get_device_properties(device).multi_processor_count * PROGRAMS_PER_PROCESSOR


def rows(segments: int, programs: int) -> int:
    """W, spans in a list: all that run at once where segments are few, half as many to cut long ones else."""
    return max(programs, segments + programs // 2)


def plan(lengths: np.ndarray, capacity: np.ndarray, programs: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut the segments of all layers into spans, as short as the number of spans allows.

    Parameters
    ----------
    lengths : np.ndarray
        int64 [L, S]: entries of every segment, or how many are expected to be read.
    capacity : np.ndarray
        int64 [L, S]: slots of every segment; its last span reaches to the last slot.
    programs : int
        Spans that the device works on at once.

    Returns
    -------
    items : np.ndarray
        int32 [L, W, 4], sorted by segment. Columns: segment; its entries before the span; slots in the span
        (0: an idle row that fills W up); 0. W depends on S and ``programs`` alone, so that lists of
        different samples fit the same buffers and the same captured CUDA graph.
    ranges : np.ndarray
        int32 [L, S, 2]: a segment's first item and how many it has, at least one.
    """
    layers, segments = lengths.shape
    width = rows(segments, programs)
    tiles = np.maximum(-(-lengths // TILE), 1)
    low, high = np.ones((layers, 1), np.int64), tiles.max(axis=1, keepdims=True)
    while (low < high).any():  # the shortest span, in tiles, of which there are no more than W
        middle = (low + high) // 2
        fits = (-(-tiles // middle)).sum(axis=1, keepdims=True) <= width
        low, high = np.where(fits, low, middle + 1), np.where(fits, middle, high)
    count = -(-tiles // high)
    length = -(-tiles // count) * TILE  # a segment's spans alike
    count = -(-tiles * TILE // length)
    end = count.cumsum(axis=1)
    layer, segment = np.divmod(np.repeat(np.arange(layers * segments), count.ravel()), segments)
    row = np.arange(len(layer)) - np.repeat(end[:, -1].cumsum() - end[:, -1], end[:, -1])
    first = end - count
    before = (row - first[layer, segment]) * length[layer, segment]
    is_last = row + 1 == end[layer, segment]
    slots = np.where(is_last, capacity[layer, segment] - before, length[layer, segment])
    items = np.zeros((layers, width, 4), np.int32)
    items[layer, row, :3] = np.stack([segment, before, slots], axis=1)
    return items, np.stack([first, count], axis=2).astype(np.int32)
