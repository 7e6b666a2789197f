"""Single-token ragged attention as torch operators, so that compilation and CUDA graphs accept it.

A pool is one layer's storage: keys and values [slots, D]. A segment is one (row, KV head) pair and owns runs
of slots, filled in their order; the work list (``work_list.plan``) says where. Nothing here waits for the
device.
"""

from __future__ import annotations

import torch

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.kernels import ragged_triton

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LARGEST_DIM = 256


@torch.library.custom_op("sparsemm::ragged_decode_attention", mutates_args=())
def ragged_decode_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    items: torch.Tensor,
    ranges: torch.Tensor,
    length: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention of every segment's queries on the segment's own entries.

    Parameters
    ----------
    query : torch.Tensor
        [S, G, D], float16, bfloat16 or float32: the G query heads of every segment.
    keys, values : torch.Tensor
        Contiguous [slots, D] in the query's dtype; slots that are not in use are not read.
    items, ranges : torch.Tensor
        A WorkList's int32 [W, 4] and [S, 2].
    length : torch.Tensor
        int64 [S]: entries of every segment, read on the device.
    scaling : float
        Factor on the scores.

    Returns
    -------
    tuple of torch.Tensor
        Output [S, G, D] in the query's dtype, and the natural log of the sum of exponentials, float32 [S, G].
        A segment without entries gives 0 and -inf. Softmax and sums are float32.

    Raises
    ------
    ConfigError
        If shapes or dtypes do not fit together.
    """
    _check(query, keys, values, items, ranges, length)
    return ragged_triton.launch(query, keys, values, items, ranges, length, scaling)


@ragged_decode_attention.register_fake
def _(query, keys, values, items, ranges, length, scaling):
    return ragged_triton.empty_results(query)


@torch.library.custom_op("sparsemm::ragged_decode_step", mutates_args=("keys", "values", "length"))
def ragged_decode_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    items: torch.Tensor,
    ranges: torch.Tensor,
    length: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Append one entry per segment, attend to all entries including it, and count it.

    Parameters
    ----------
    query, items, ranges, scaling
        As for ``ragged_decode_attention``.
    key, value : torch.Tensor
        The new token's, S * D elements in the order of the segments.
    keys, values : torch.Tensor
        As for ``ragged_decode_attention``; slot ``length[s]`` of segment s is written.
    length : torch.Tensor
        int64 [S], before the append; incremented. A segment without room is left as it is and attends to
        what it has, so the caller sees to the room.

    Returns
    -------
    torch.Tensor
        [S, G, D] in the query's dtype.

    Raises
    ------
    ConfigError
        If shapes or dtypes do not fit together.
    """
    _check(query, keys, values, items, ranges, length)
    segments, _, dim = query.shape
    for name, tensor in (("key", key), ("value", value)):
        if tensor.numel() != segments * dim or tensor.dtype != keys.dtype:
            raise ConfigError(name, _facts(tensor), f"[{segments}, {dim}] {keys.dtype}")
    output, _ = ragged_triton.launch(query, keys, values, items, ranges, length, scaling, new=(key, value))
    return output


@ragged_decode_step.register_fake
def _(query, key, value, keys, values, items, ranges, length, scaling):
    return ragged_triton.empty_results(query)[0]


def _check(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    items: torch.Tensor,
    ranges: torch.Tensor,
    length: torch.Tensor,
) -> None:
    segments, _, dim = query.shape
    if query.dtype not in DTYPES:
        raise ConfigError("query.dtype", query.dtype, f"one of {', '.join(map(str, DTYPES))}")
    if dim > LARGEST_DIM:
        raise ConfigError("head dimension", dim, f"at most {LARGEST_DIM}; kernel=torch takes any")
    for name, tensor in (("keys", keys), ("values", values)):
        if tensor.shape != (len(keys), dim) or tensor.dtype != query.dtype or not tensor.is_contiguous():
            raise ConfigError(name, _facts(tensor), f"contiguous [slots, {dim}] {query.dtype}")
    if items.dtype != torch.int32 or ranges.dtype != torch.int32 or ranges.shape != (segments, 2):
        raise ConfigError("ranges", _facts(ranges), f"[{segments}, 2] and items, both int32: a work list")
    if length.shape != (segments,) or length.dtype != torch.int64:
        raise ConfigError("length", _facts(length), f"[{segments}] {torch.int64}")


def _facts(tensor: torch.Tensor) -> str:
    return f"{list(tensor.shape)} {tensor.dtype}"
