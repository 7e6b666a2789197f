"""Triton kernels: split-KV attention for a single token per segment, and storing a prompt's kept entries.

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
MERGE_SPANS = 64  # partial results joined per step
MERGE_DIM = 32  # numbers of a result that one program joins
# how a span is read; within 2 % of the best of what was tried on an H200 (docs/performance.md)
TILE_ELEMENTS = 8192  # of keys per step
WARPS = 4
STAGES = 3  # steps in flight


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
    pool,
    segments,
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
    WIDEN: tl.constexpr,
):
    """Maximum, sum and weighted values of one span; the last span's program takes the new entry in."""
    item = tl.program_id(0)
    slots = tl.load(items + item * 4 + 2)
    if slots == 0:
        return
    segment = tl.load(items + item * 4).to(tl.int64)
    before = tl.load(items + item * 4 + 1)
    first = tl.load(segments + segment) + before
    keys = tl.load(pool).to(query.dtype)
    values = tl.load(pool + 1).to(query.dtype)
    keys = tl.multiple_of(keys, 16)
    values = tl.multiple_of(values, 16)
    filled = tl.load(length + segment).to(tl.int32) - before
    used = tl.minimum(tl.maximum(filled, 0), slots)

    head = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM)
    in_dim = dim < D
    q_offset = (segment * G + head[:, None]) * D + dim[None, :]
    q = tl.load(query + q_offset, mask=(head[:, None] < G) & in_dim[None, :], other=0.0)

    owned = (filled == used) & (used < slots)  # the new entry's slot lies in this span
    mine = in_dim & (dim < tl.where(owned, D, 0))
    new_key = tl.load(key + segment * D + dim, mask=mine, other=0.0)
    new_value = tl.load(value + segment * D + dim, mask=mine, other=0.0)
    target = (first + used) * D + dim
    tl.store(keys + target, new_key, mask=mine)
    tl.store(values + target, new_value, mask=mine)
    # the new entry starts the running softmax, so the loop never reads what was just written
    score = tl.sum(q.to(tl.float32) * new_key.to(tl.float32)[None, :], axis=1) * scale
    highest = tl.where(owned, score, float("-inf"))
    total = tl.where(owned, 1.0, 0.0) + tl.zeros([ROWS], tl.float32)
    output = tl.zeros([ROWS, DIM], tl.float32) + new_value.to(tl.float32)[None, :]

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
    segments,
    ranges,
    length,
    output,
    count_of_segments,
    G: tl.constexpr,
    D: tl.constexpr,
    DIM: tl.constexpr,
    SPANS: tl.constexpr,
):
    """Join the partial results of one query head, some of its dimensions, and count the new entry."""
    segment = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    dim = tl.program_id(2) * DIM + tl.arange(0, DIM)
    first = tl.load(ranges + segment * 2).to(tl.int64)
    count = tl.load(ranges + segment * 2 + 1)
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
    tl.store(output + (segment * G + head) * D + dim, result.to(output.dtype.element_ty), mask=in_dim)
    filled = tl.load(length + segment)
    counts = (head == 0) & (tl.program_id(2) == 0)
    has_room = filled < tl.load(segments + count_of_segments + segment)
    tl.store(length + segment, filled + 1, mask=counts & has_room)


@triton.jit
def _store_prompt(
    key,
    value,
    order,
    segments,
    keys,
    values,
    slots,
    length,
    count_of_segments,
    row_stride,
    head_stride,
    position_stride,
    K: tl.constexpr,
    D: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
):
    """Copy some of a segment's kept entries, by rank, to its first slots; nothing beyond the pool."""
    segment = tl.program_id(0).to(tl.int64)
    count = tl.load(segments + count_of_segments + segment)
    rank = tl.program_id(1) * TILE + tl.arange(0, TILE)
    position = tl.load(order + segment * length + rank, mask=rank < count, other=0)
    dim = tl.arange(0, DIM)
    slot = tl.load(segments + segment) + rank
    mask = (rank[:, None] < count) & (slot[:, None] < slots) & (dim[None, :] < D)
    source = (segment // K) * row_stride + (segment % K) * head_stride
    source = source + position[:, None] * position_stride + dim[None, :]
    target = slot[:, None] * D + dim[None, :]
    tl.store(keys + target, tl.load(key + source, mask=mask), mask=mask)
    tl.store(values + target, tl.load(value + source, mask=mask), mask=mask)


def store_prompt(
    key: torch.Tensor,
    value: torch.Tensor,
    order: torch.Tensor,
    segments: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    longest: int,
) -> None:
    """Copy the kept entries of a layer's prompt to their slots.

    Parameters
    ----------
    key, value : torch.Tensor
        [B, K, N, D].
    order : torch.Tensor
        int64 [B, K, N]: positions, those to keep first.
    segments : torch.Tensor
        int64 [2, B * K]: every segment's first slot, and how many entries it keeps.
    keys, values : torch.Tensor
        [slots, D], written to.
    longest : int
        Entries of the longest segment, or more.
    """
    kv_heads, length, dim = key.shape[1:]
    key, value = (one if one.stride(3) == 1 else one.contiguous() for one in (key, value))
    if key.stride() != value.stride():
        key, value = key.contiguous(), value.contiguous()
    tile = 32
    with _device_of(key):
        _store_prompt[(segments.shape[1], -(-longest // tile))](
            key,
            value,
            order.contiguous(),
            segments,
            keys,
            values,
            len(keys),
            length,
            segments.shape[1],
            *key.stride()[:3],
            K=kv_heads,
            D=dim,
            DIM=triton.next_power_of_2(dim),
            TILE=tile,
        )


def launch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pool: torch.Tensor,
    segments: torch.Tensor,
    items: torch.Tensor,
    ranges: torch.Tensor,
    length: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Run both kernels; arguments and results are those of the operator in ``ragged_op``."""
    count, group, dim = query.shape
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    output = torch.empty_like(query)
    partial = query.new_empty((2, len(items), group), dtype=torch.float32)
    partial_output = query.new_empty((len(items), group, dim), dtype=torch.float32)
    padded = max(16, triton.next_power_of_2(dim))
    with _device_of(query):
        _attend_span[(len(items),)](
            query,
            key,
            value,
            pool,
            segments,
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
            TILE=_tile(padded, query.element_size()),
            # Triton's interpreter multiplies the bit patterns of bfloat16 matrices
            WIDEN=not isinstance(_attend_span, triton.JITFunction) and query.dtype == torch.bfloat16,
            num_warps=WARPS,
            num_stages=STAGES,
        )
        _merge_spans[(count, group, -(-dim // MERGE_DIM))](
            partial[0],
            partial[1],
            partial_output,
            segments,
            ranges,
            length,
            output,
            count,
            G=group,
            D=dim,
            DIM=MERGE_DIM,
            SPANS=MERGE_SPANS,
            num_warps=4,
        )
    return output


def _tile(dim: int, element_size: int) -> int:
    """Slots per step; full float32 products run on the plain cores and need their registers."""
    elements = TILE_ELEMENTS if element_size == 2 else TILE_ELEMENTS // 4
    return max(16, min(128, elements // dim))


def _device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager[None]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
