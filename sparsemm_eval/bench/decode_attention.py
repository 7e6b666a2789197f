"""Ragged decode attention on its own: beside dense SDPA, float64 loops and the copy bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from sparsemm_eval.bench.clock import captured, interleaved, milliseconds
from sparsemm_eval.cache.ragged_cache import Store, new_arena
from sparsemm_eval.cache.ragged_store import RaggedStore, block_size
from sparsemm_eval.config import CompressionConfig
from sparsemm_eval.kernels.dispatch import choose
from sparsemm_eval.methods import fullkv
from sparsemm_eval.methods.apportion import water_fill
from sparsemm_eval.methods.keep import Kept

LAYERS = 6  # of one model, each with its own entries


@dataclass(frozen=True)
class Shape:
    """One layer at decode time: a batch of one, ``kv_heads`` heads of ``budget`` entries on average."""

    kv_heads: int
    group: int
    head_dim: int
    budget: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Row:
    """Median milliseconds per call."""

    shape: Shape
    longest: int  # entries of the longest head
    dense_ms: float  # SDPA as transformers calls it at decode, with enable_gqa
    rows_ms: float  # SDPA with a group's queries as rows of one head: the same result, faster on a CPU
    ragged_ms: float  # this package

    def cells(self) -> list[str]:
        """Of the command's table."""
        counts = (self.shape.budget, self.longest, self.shape.group)
        times = (self.dense_ms, self.rows_ms, self.ragged_ms)
        ratios = (self.ragged_ms / self.dense_ms, self.ragged_ms / self.rows_ms)
        return [*map(str, counts), *(f"{ms:.3f}" for ms in times), *(f"{ratio:.2f}" for ratio in ratios)]


def head_lengths(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """int64 [K] summing to K * budget, concentrated as visual scores are: few long heads, many short ones."""
    weight = torch.rand(shape.kv_heads, generator=generator, dtype=torch.float64) ** 6
    floor = torch.full_like(weight, 0.2 * shape.budget)
    total = shape.budget * shape.kv_heads
    return water_fill(floor, weight, cap=total, total=total)


def measure(shape: Shape, *, rounds: int, device: torch.device, seed: int = 0) -> Row:
    """Time the attention of one decode step both ways, on fresh random entries."""
    generator = torch.Generator().manual_seed(seed)
    lengths = head_lengths(shape, generator)
    longest = int(lengths.max())

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to(device, shape.dtype)

    query = random(1, shape.kv_heads * shape.group, 1, shape.head_dim)
    order = torch.arange(longest, device=device).expand(1, shape.kv_heads, -1)
    rows = query.view(1, shape.kv_heads, shape.group, shape.head_dim)

    def dense() -> list[torch.Tensor]:
        return [random(1, shape.kv_heads, shape.budget, shape.head_dim) for _ in range(2)]

    def attend() -> Callable[[], object]:
        pair = (random(1, shape.kv_heads, longest, shape.head_dim) for _ in range(2))
        store = _filled(shape, *pair, Kept(order, lengths[None], int(lengths.sum())))
        token = (random(1, shape.kv_heads, 1, shape.head_dim) for _ in range(2))
        return partial(store.attend, query, *token, shape.head_dim**-0.5)

    # every call reads another layer's entries, as in a model, so that no rival finds its own in the cache
    sdpa = F.scaled_dot_product_attention
    candidates = {
        "dense": _in_turn(
            [partial(sdpa, query, *dense(), enable_gqa=shape.group > 1) for _ in range(LAYERS)]
        ),
        "rows": _in_turn([partial(sdpa, rows, *dense()) for _ in range(LAYERS)]),
        "ragged": _in_turn([attend() for _ in range(LAYERS)]),
    }
    with torch.inference_mode():
        if device.type == "cuda":  # without the time of launches, as in a captured step
            total = {name: milliseconds(captured(run), rounds, device) for name, run in candidates.items()}
        else:
            total = {name: 1000 * taken for name, taken in interleaved(candidates, rounds, device).items()}
    per_call = {name: taken / LAYERS for name, taken in total.items()}
    return Row(shape, longest, per_call["dense"], per_call["rows"], per_call["ragged"])


def _filled(shape: Shape, key: torch.Tensor, value: torch.Tensor, kept: Kept) -> Store:
    """A store as eager decoding uses it."""
    if choose("auto", key.device) == "triton":
        arena = new_arena(CompressionConfig(fullkv.METHOD.name), 1, "triton")
        arena.fill(0, key, value, kept, 64)
        return arena.stores[0]
    store = RaggedStore(block_size(shape.budget))
    store.fill(key, value, kept, 64)
    return store


def _in_turn(calls: list[Callable[[], object]]) -> Callable[[], None]:
    def run() -> None:
        for call in calls:
            call()

    return run


TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4}


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


def checks(
    device: torch.device, kernel: str, dtypes: tuple[torch.dtype, ...]
) -> Iterator[tuple[str, float, bool]]:
    """Comparisons with float64 loops: of random ragged shapes, three tokens appended each.

    Yields
    ------
    (shape, error, passed)
        The relative error, and whether it is small enough; not where it is NaN.
    """
    cases = ((1, 4, 1, 128), (2, 4, 4, 64), (3, 2, 6, 32), (1, 4, 7, 128), (2, 2, 8, 256))
    for number, (batch, kv_heads, group, dim) in enumerate(cases):
        generator = torch.Generator().manual_seed(number)
        counts = torch.randint(1, 700, (batch, kv_heads), generator=generator)
        counts[0, 0] = 1
        for dtype in dtypes:
            error = _error(counts, Shape(kv_heads, group, dim, 0, dtype), device, kernel, number)
            yield f"{batch=} {kv_heads=} {group=} {dim=} {dtype}", error, error <= TOLERANCE[dtype]


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
    query = torch.randn(batch, shape.kv_heads * shape.group, 1, shape.head_dim, device=device)
    query = query.to(shape.dtype)
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
