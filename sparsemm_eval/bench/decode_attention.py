"""Ragged decode attention, by the kernel that runs there, against dense SDPA over as many entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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

    heads = shape.kv_heads * shape.group
    query = random(1, heads, 1, shape.head_dim)
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
