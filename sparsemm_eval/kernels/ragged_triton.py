"""Triton kernels of split-KV attention for a single token per segment.

Flash-decoding (Dao et al. 2023): every program walks over one span of a segment's entries for all G query
heads of the segment at once and leaves a partial result; a second kernel joins a segment's partial results
by their log-sum-exp. The G rows are padded to the 16 that a matrix instruction takes. Only slots in use are
read.
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
ROWS = 16  # smallest number of rows of a matrix instruction
TILE_ELEMENTS = 8192  # of keys per step: three steps of keys and values in flight fit every GPU since Ampere
MERGE_SPANS = 16  # partial results joined per step


@triton.jit
def _dot(a, b, WIDEN: tl.constexpr):
    """Matrix product, float32 sums of exact products."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _attend_span(
    query,
    key,
    value,
    keys,
    values,
    items,
    length,
    partial_max,
    partial_sum,
    partial_output,
    scale,
    G: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    APPEND: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Maximum, sum and weighted values of one span; with APPEND its owner takes the new entry in."""
    item = tl.program_id(0)
    segment = tl.load(items + item * 4).to(tl.int64)
    first = tl.load(items + item * 4 + 1).to(tl.int64)
    before = tl.load(items + item * 4 + 2)
    slots = tl.load(items + item * 4 + 3)  # 0 for an idle item, which then reads and owns nothing
    filled = tl.load(length + segment).to(tl.int32) - before
    used = tl.minimum(tl.maximum(filled, 0), slots)

    head = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM)
    in_dim = dim < D
    q_offset = (segment * G + head[:, None]) * D + dim[None, :]
    q = tl.load(query + q_offset, mask=(head[:, None] < G) & in_dim[None, :], other=0.0)

    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    output = tl.zeros([ROWS, DIM], tl.float32)
    if APPEND:
        owned = (filled == used) & (used < slots)  # the new entry's slot lies in this span
        mine = in_dim & (dim < tl.where(owned, D, 0))
        new_key = tl.load(key + segment * D + dim, mask=mine, other=0.0)
        new_value = tl.load(value + segment * D + dim, mask=mine, other=0.0)
        target = (first + used) * D + dim
        tl.store(keys + target, new_key, mask=mine)
        tl.store(values + target, new_value, mask=mine)
        # the new entry starts the running softmax, so the loop never reads what was just written
        score = tl.sum(q.to(tl.float32) * new_key.to(tl.float32)[None, :], axis=1) * scale
        highest = tl.where(owned, score, highest)
        total = tl.where(owned, total + 1.0, total)
        output = output + new_value.to(tl.float32)[None, :]

    for start in range(0, used, TILE):
        slot = start + tl.arange(0, TILE)
        offset = (first + slot[:, None]) * D + dim[None, :]
        readable = (slot[:, None] < used) & in_dim[None, :]
        k = tl.load(keys + offset, mask=readable, other=0.0)
        scores = _dot(q, tl.trans(k), WIDEN) * scale
        scores = tl.where(slot[None, :] < used, scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, axis=1))
        decay = tl.exp2(highest - new_highest)
        weights = tl.exp2(scores - new_highest[:, None])
        v = tl.load(values + offset, mask=readable, other=0.0)
        total = total * decay + tl.sum(weights, axis=1)
        output = output * decay[:, None] + _dot(weights.to(v.dtype), v, WIDEN)
        highest = new_highest

    partial = item.to(tl.int64) * G + head
    tl.store(partial_max + partial, highest, mask=head < G)
    tl.store(partial_sum + partial, total, mask=head < G)
    # an empty span's values are never read: its sum is 0; what is not a number is passed on
    written = (head[:, None] < G) & (total[:, None] != 0) & in_dim[None, :]
    tl.store(partial_output + partial[:, None] * D + dim[None, :], output, mask=written)


@triton.jit
def _merge_spans(
    partial_max,
    partial_sum,
    partial_output,
    items,
    ranges,
    length,
    output,
    lse,
    G: tl.constexpr,
    D: tl.constexpr,
    DIM: tl.constexpr,
    SPANS: tl.constexpr,
    APPEND: tl.constexpr,
):
    """Join the partial results of one query head; with APPEND count the new entry."""
    segment = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    first = tl.load(ranges + segment * 2).to(tl.int64)
    count = tl.load(ranges + segment * 2 + 1)
    dim = tl.arange(0, DIM)
    in_dim = dim < D

    highest = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    joined = tl.zeros([DIM], tl.float32)
    for start in range(0, count, SPANS):
        span = start + tl.arange(0, SPANS)
        partial = (first + span) * G + head
        part_max = tl.load(partial_max + partial, mask=span < count, other=float("-inf"))
        part_sum = tl.load(partial_sum + partial, mask=span < count, other=0.0)
        new_highest = tl.maximum(highest, tl.max(part_max, axis=0))
        # nothing so far, where -inf minus -inf would be NaN
        shift = tl.where(new_highest == float("-inf"), 0.0, new_highest)
        decay = tl.exp2(highest - shift)
        weight = tl.exp2(part_max - shift)
        readable = (part_sum[:, None] != 0) & in_dim[None, :]
        part = tl.load(partial_output + partial[:, None] * D + dim[None, :], mask=readable, other=0.0)
        total = total * decay + tl.sum(part_sum * weight, axis=0)
        joined = joined * decay + tl.sum(part * weight[:, None], axis=0)
        highest = new_highest

    result = joined / tl.where(total != 0, total, 1.0)  # a segment without entries gives zeros
    place = segment * G + head
    tl.store(output + place * D + dim, result.to(output.dtype.element_ty), mask=in_dim)
    logarithm = highest + tl.log2(tl.where(total != 0, total, 1.0))
    tl.store(lse + place + tl.arange(0, 1), logarithm * 0.6931471805599453)
    if APPEND:
        last = items + (first + tl.maximum(count, 1) - 1) * 4
        capacity = tl.where(count > 0, tl.load(last + 2) + tl.load(last + 3), 0)
        filled = tl.load(length + segment)
        tl.store(length + segment, filled + 1, mask=(head == 0) & (filled < capacity))


def launch(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    items: torch.Tensor,
    ranges: torch.Tensor,
    length: torch.Tensor,
    scaling: float,
    new: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run both kernels; arguments and results are those of the operators in ``ragged_op``.

    Parameters
    ----------
    new : tuple of torch.Tensor, optional
        Key and value [S, D] to append before attending.

    Returns
    -------
    tuple of torch.Tensor
        Output [S, G, D] in the query's dtype and log-sum-exp float32 [S, G].
    """
    segments, group, dim = query.shape
    query = query.contiguous()
    key, value = (query, query) if new is None else (tensor.contiguous() for tensor in new)
    output, lse = empty_results(query)
    partial = query.new_empty((2, len(items), group), dtype=torch.float32)
    partial_output = query.new_empty((len(items), group, dim), dtype=torch.float32)
    padded = max(16, triton.next_power_of_2(dim))
    with _device_of(query):
        _attend_span[(len(items),)](
            query,
            key,
            value,
            keys,
            values,
            items,
            length,
            partial[0],
            partial[1],
            partial_output,
            scaling * LOG2_E,
            G=group,
            D=dim,
            ROWS=max(ROWS, triton.next_power_of_2(group)),
            DIM=padded,
            TILE=_tile(padded, keys.element_size()),
            APPEND=new is not None,
            # Triton's interpreter multiplies the bit patterns of bfloat16 matrices
            WIDEN=not isinstance(_attend_span, triton.JITFunction) and query.dtype == torch.bfloat16,
            num_warps=4,
            num_stages=3,
        )
        _merge_spans[(segments, group)](
            partial[0],
            partial[1],
            partial_output,
            items,
            ranges,
            length,
            output,
            lse,
            G=group,
            D=dim,
            DIM=padded,
            SPANS=MERGE_SPANS,
            APPEND=new is not None,
            num_warps=4,
        )
    return output, lse


def empty_results(query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unfilled output [S, G, D] and log-sum-exp float32 [S, G]."""
    return (
        torch.empty_like(query, memory_format=torch.contiguous_format),
        query.new_empty(query.shape[:2], dtype=torch.float32),
    )


def _tile(dim: int, element_size: int) -> int:
    """Slots per step; full float32 products run on the plain cores and need their registers."""
    elements = TILE_ELEMENTS if element_size == 2 else TILE_ELEMENTS // 4
    return max(16, min(64, elements // dim))


def _device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager[None]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
