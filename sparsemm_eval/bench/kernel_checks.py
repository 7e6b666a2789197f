"""The decode kernel on its own: right against float64, and how close to the copy bandwidth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sparsemm_eval.bench.clock import captured, milliseconds
from sparsemm_eval.bench.decode_attention import Shape, head_lengths
from sparsemm_eval.cache.ragged_cache import Store, new_arena
from sparsemm_eval.config import CompressionConfig
from sparsemm_eval.methods import fullkv
from sparsemm_eval.methods.keep import Kept

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4}


@dataclass(frozen=True)
class Check:
    """One comparison with float64 loops."""

    batch: int
    kv_heads: int
    group: int
    dim: int
    dtype: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the relative error is small enough; not where it is NaN."""
        return self.error <= self.tolerance


def random_store(
    counts: torch.Tensor, layer: Shape, device: torch.device, kernel: str, room: int, seed: int
) -> tuple[Store, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A store of random entries, int64 [B, K] of them, and the entries themselves per segment."""
    generator = torch.Generator(device).manual_seed(seed)
    length = int(counts.max())
    size = (*counts.shape, length, layer.head_dim)
    key, value = (
        torch.randn(size, generator=generator, device=device, dtype=torch.float32).to(layer.dtype)
        for _ in range(2)
    )
    arena = new_arena(CompressionConfig(fullkv.METHOD.name), 1, kernel)
    order = torch.arange(length, device=device).expand(*counts.shape, length)
    arena.fill(0, key, value, Kept(order, counts, int(counts.sum())), room)
    entries = [
        (key[b, k, : counts[b, k]], value[b, k, : counts[b, k]])
        for b in range(counts.shape[0])
        for k in range(counts.shape[1])
    ]
    return arena.stores[0], entries


def checks(device: torch.device, kernel: str, dtypes: tuple[torch.dtype, ...]) -> Iterator[Check]:
    """Random ragged shapes, three tokens appended each."""
    cases = ((1, 4, 1, 128), (2, 4, 4, 64), (3, 2, 6, 32), (1, 4, 7, 128), (2, 2, 8, 256))
    for number, (batch, kv_heads, group, dim) in enumerate(cases):
        generator = torch.Generator().manual_seed(number)
        counts = torch.randint(1, 700, (batch, kv_heads), generator=generator)
        counts[0, 0] = 1
        for dtype in dtypes:
            error = _error(counts, Shape(kv_heads, group, dim, 0, dtype), device, kernel, number)
            name = str(dtype).removeprefix("torch.")
            yield Check(batch, kv_heads, group, dim, name, error, TOLERANCE[dtype])


def _error(counts: torch.Tensor, layer: Shape, device: torch.device, kernel: str, seed: int) -> float:
    """The largest relative error of three steps; NaN if one is."""
    (batch, kv_heads), group, dim = counts.shape, layer.group, layer.head_dim
    store, entries = random_store(counts, layer, device, kernel, 8, seed)
    generator = torch.Generator(device).manual_seed(seed + 1)
    worst = 0.0
    for _ in range(3):
        query, key, value = (
            torch.randn(batch, heads, 1, dim, generator=generator, device=device).to(layer.dtype)
            for heads in (kv_heads * group, kv_heads, kv_heads)
        )
        appended = zip(key.flatten(0, 1), value.flatten(0, 1), strict=True)
        entries = [
            (torch.cat([k, new_key]), torch.cat([v, new_value]))
            for (k, v), (new_key, new_value) in zip(entries, appended, strict=True)
        ]
        ours = store.attend(query, key, value, dim**-0.5).double().view(-1, group, dim)
        rows = query.double().view(-1, group, dim)
        truth = torch.stack(
            [
                (row @ k.double().T * dim**-0.5).softmax(-1) @ v.double()
                for row, (k, v) in zip(rows, entries, strict=True)
            ]
        )
        error = float((ours - truth).norm() / truth.norm())
        worst = error if error != error else max(worst, error)
    return worst


def speed(
    shape: Shape, batch: int, ragged: bool, device: torch.device, kernel: str, bandwidth: float, rounds: int
) -> dict[str, Any]:
    """Time a layer's attention, in a CUDA graph on a GPU, reading another layer's entries every time.

    Parameters
    ----------
    shape : Shape
        Of one layer; ``budget`` is the mean number of entries per KV head.
    ragged : bool
        Few long heads and many short ones; else all alike.

    Returns
    -------
    dict
        ``entries`` and ``megabytes`` of a layer, ``microseconds``, ``share`` of the copy bandwidth.
    """
    lengths = head_lengths(shape, torch.Generator().manual_seed(0))
    counts = (lengths if ragged else torch.full_like(lengths, shape.budget)).repeat(batch, 1)
    layer_bytes = int(counts.sum()) * 2 * shape.head_dim * torch.empty((), dtype=shape.dtype).element_size()
    layers = max(2, min(16, int(4e8 // max(layer_bytes, 1))))  # more than a cache holds
    stores = [random_store(counts, shape, device, kernel, 64, seed)[0] for seed in range(layers)]
    heads = shape.kv_heads * shape.group
    query = torch.randn(batch, heads, 1, shape.head_dim, device=device).to(shape.dtype)
    key, value = (
        torch.randn(batch, shape.kv_heads, 1, shape.head_dim, device=device).to(shape.dtype) for _ in range(2)
    )

    def run() -> None:
        for store in stores:
            store.attend(query, key, value, shape.head_dim**-0.5)

    timed = captured(run) if device.type == "cuda" else run
    taken = milliseconds(timed, rounds, device) / layers
    return {
        "entries": int(counts.sum()),
        "ragged": ragged,
        "group": shape.group,
        "megabytes": layer_bytes / 1e6,
        "microseconds": taken * 1000,
        "share": layer_bytes / (taken / 1000) / bandwidth,
    }
