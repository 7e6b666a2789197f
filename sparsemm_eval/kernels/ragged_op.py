"""Single-token ragged attention as a torch operator, so that compilation and CUDA graphs accept it.

A pool is one layer's storage: keys and values [slots, D]. A segment is one (row, KV head) pair and owns one
run of slots, filled in order; the work list (``work_list.plan``) says what a program reads. The operator
finds the pool by its address in a tensor: a pool that is replaced by a larger one needs no new compilation
and no new capture. Nothing here waits for the device.
"""

from __future__ import annotations

import torch

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.kernels import ragged_triton

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LARGEST_DIM = 256


@torch.library.custom_op("sparsemm::ragged_decode_step", mutates_args=("length",))
def ragged_decode_step(
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
    """Append one entry per segment, attend to all entries including it, and count it.

    Parameters
    ----------
    query : torch.Tensor
        [S, G, D], float16, bfloat16 or float32: the G query heads of every segment.
    key, value : torch.Tensor
        The new token's, S * D elements in the order of the segments, in the query's dtype.
    pool : torch.Tensor
        int64 [2]: the addresses of keys and values, contiguous [slots, D] in the query's dtype. The caller
        keeps them alive. Slot ``first + length`` of every segment is written; slots not in use are not read.
    segments : torch.Tensor
        int64 [2, S]: every segment's first slot and its number of slots.
    items, ranges : torch.Tensor
        A layer of a work list: int32 [W, 4] and [S, 2].
    length : torch.Tensor
        int64 [S], entries before the append; incremented. A segment without a free slot is left as it is and
        attends to what it has, so the caller sees to the room.
    scaling : float
        Factor on the scores.

    Returns
    -------
    torch.Tensor
        [S, G, D] in the query's dtype; softmax and sums are float32. Zeros for a segment without slots.

    Raises
    ------
    ConfigError
        If shapes or dtypes do not fit together.
    """
    count, _, dim = query.shape
    if query.dtype not in DTYPES:
        raise ConfigError("query.dtype", query.dtype, f"one of {', '.join(map(str, DTYPES))}")
    if dim > LARGEST_DIM:
        raise ConfigError("head dimension", dim, f"at most {LARGEST_DIM}; kernel=torch takes any")
    for name, tensor in (("key", key), ("value", value)):
        if tensor.numel() != count * dim or tensor.dtype != query.dtype:
            raise ConfigError(name, _facts(tensor), f"[{count}, {dim}] {query.dtype}")
    for name, tensor, shape, dtype in (
        ("pool", pool, (2,), torch.int64),
        ("segments", segments, (2, count), torch.int64),
        ("length", length, (count,), torch.int64),
        ("items", items, (len(items), 4), torch.int32),
        ("ranges", ranges, (count, 2), torch.int32),
    ):
        if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous():
            raise ConfigError(name, _facts(tensor), f"contiguous {list(shape)} {dtype}")
    return ragged_triton.launch(query, key, value, pool, segments, items, ranges, length, scaling)


@ragged_decode_step.register_fake
def _(query, key, value, pool, segments, items, ranges, length, scaling):
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def _facts(tensor: torch.Tensor) -> str:
    return f"{list(tensor.shape)} {tensor.dtype}"
