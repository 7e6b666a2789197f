"""Decode attention over blocks of ragged segments in plain torch: any device, any dtype.

A segment is one (row, KV head) pair. Its entries lie in blocks of equal size, so two batched matrix products
over the blocks read every entry once, whatever the segments' lengths; the results of a segment's blocks are
then added up. Nothing is padded beyond a segment's last block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

# A sum of exponentials within these bounds is as accurate as a shifted one: float32 holds 1e-38 … 1e38.
UNSHIFTED_RANGE = (1e-30, 1e30)


class Blocks(NamedTuple):
    """Blocks of entries, M blocks of T slots each.

    Attributes
    ----------
    keys, values : torch.Tensor
        [M, T, D]; unused slots hold finite numbers.
    bias : torch.Tensor
        [M, T, 1] float32, 0 for a used slot and -inf for an unused one; every block has a used slot.
    segment : torch.Tensor
        int64 [M], the segment a block belongs to.
    """

    keys: torch.Tensor
    values: torch.Tensor
    bias: torch.Tensor
    segment: torch.Tensor


def ragged_attention(query: torch.Tensor, parts: Sequence[Blocks], scaling: float) -> torch.Tensor:
    """Softmax attention of every segment's queries on the segment's own entries.

    Parameters
    ----------
    query : torch.Tensor
        [S, G, D]: the G query heads of every segment.
    parts : sequence of Blocks
        All entries; every segment has at least one.
    scaling : float
        Factor on the scores.

    Returns
    -------
    torch.Tensor
        [S, G, D] in the query's dtype; softmax and sums are float32.
    """
    if query.device.type == "cpu":  # the test below reads a number back: free here, a stall on a GPU
        output, total = _weighted_sums(query, parts, [_scores(query, part, scaling) for part in parts])
        low, high = torch.aminmax(total)
        if UNSHIFTED_RANGE[0] < low.item() and high.item() < UNSHIFTED_RANGE[1]:
            return output.div_(total.unsqueeze(-1)).to(query.dtype)
    return shifted_attention(query, parts, scaling)


def shifted_attention(query: torch.Tensor, parts: Sequence[Blocks], scaling: float) -> torch.Tensor:
    """As ``ragged_attention``, always with the highest score taken off first.

    Reads no number back and has no shape that depends on data, so it can be compiled and captured. Blocks may
    have no used slot as long as every segment has one somewhere.
    """
    scores = [_scores(query, part, scaling) for part in parts]
    shift = query.new_full(query.shape[:2], -torch.inf, dtype=torch.float32)
    for part, score in zip(parts, scores, strict=True):
        highest = score.amax(1)  # [M, G]
        shift.scatter_reduce_(0, part.segment[:, None].expand_as(highest), highest, "amax")
    for part, score in zip(parts, scores, strict=True):
        score.sub_(shift.index_select(0, part.segment).unsqueeze(1))
    output, total = _weighted_sums(query, parts, scores)
    return output.div_(total.unsqueeze(-1)).to(query.dtype)


def _weighted_sums(
    query: torch.Tensor, parts: Sequence[Blocks], scores: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 sums of exp(score) * value [S, G, D] and of exp(score) [S, G]; uses the scores up."""
    output = query.new_zeros(query.shape, dtype=torch.float32)
    total = query.new_zeros(query.shape[:2], dtype=torch.float32)
    for part, score in zip(parts, scores, strict=True):
        weights = score.exp_()  # [M, T, G]
        total.index_add_(0, part.segment, weights.sum(1))
        output.index_add_(0, part.segment, _product(weights, part.values))
    return output, total


def _scores(query: torch.Tensor, part: Blocks, scaling: float) -> torch.Tensor:
    """float32 [M, T, G]; -inf in unused slots."""
    # keys times queries, not the other way round: up to twice as fast in CPU matrix libraries
    rows = query.index_select(0, part.segment).transpose(1, 2)  # [M, D, G]
    if query.dtype == torch.float32:
        return torch.baddbmm(part.bias, part.keys, rows, alpha=scaling)
    if query.device.type == "cuda":
        return torch.bmm(part.keys, rows, out_dtype=torch.float32).mul_(scaling).add_(part.bias)
    # half-precision scores would lose the softmax: 8 bits of mantissa are 6 % at a score of 16
    return torch.baddbmm(part.bias, part.keys.float(), rows.float(), alpha=scaling)


def _product(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Weights [M, T, G] times values [M, T, D] -> float32 [M, G, D]."""
    rows = weights.transpose(1, 2)
    if values.dtype == torch.float32:
        return torch.bmm(rows, values)
    if values.device.type == "cuda":
        return torch.bmm(rows.to(values.dtype), values, out_dtype=torch.float32)
    return torch.bmm(rows, values.float())
