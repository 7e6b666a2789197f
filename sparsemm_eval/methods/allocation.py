"""How many entries each KV head keeps: one small function per method.

Every function takes an ``AllocationInput`` and returns int64 [B, K], the entries each KV head of this layer
keeps with the observation window included, before ``allocate`` clips them to the prompt. A new method is a
function here, a name in ``ALLOCATORS`` and in ``config.METHODS``, and a row in the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from sparsemm_eval.config import CompressionConfig
from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.methods.apportion import water_fill


@dataclass(frozen=True)
class AllocationInput:
    """What an allocator may look at.

    Attributes
    ----------
    config : CompressionConfig
        The knobs.
    layer, num_layers : int
        This layer's index and the number of layers.
    kv_heads, query_heads : int
        K and H.
    prompt_lengths : torch.Tensor
        int64 [B] on the CPU, padding excluded.
    importance : torch.Tensor
        float32 [B, K, P], P = N - window; padding holds zeros at the left.
    """

    config: CompressionConfig
    layer: int
    num_layers: int
    kv_heads: int
    query_heads: int
    prompt_lengths: torch.Tensor
    importance: torch.Tensor

    @property
    def base(self) -> int:
        """Budget without the window."""
        return self.config.budget - self.config.window

    def uniform(self, per_row: list[int]) -> torch.Tensor:
        """[B] numbers -> int64 [B, K], the same for all heads of a row."""
        return torch.tensor(per_row, dtype=torch.int64)[:, None].expand(-1, self.kv_heads)


def allocate(data: AllocationInput) -> torch.Tensor:
    """Entries each KV head of a layer keeps, never more than its row's prompt.

    Returns
    -------
    torch.Tensor
        int64 [B, K] on the CPU, observation window included.
    """
    lengths = data.prompt_lengths[:, None]
    if not data.config.compresses:
        return lengths.expand(-1, data.kv_heads).clone()
    wanted = ALLOCATORS[data.config.method](data)
    # a prompt that fits into the mean budget is left whole: nothing would be gained by cutting it
    wanted = torch.where(lengths <= data.config.budget, lengths, wanted)
    return torch.minimum(wanted, lengths)


def snapkv(data: AllocationInput) -> torch.Tensor:
    """SnapKV: every head the same."""
    return data.uniform([data.config.budget] * len(data.prompt_lengths))


def pyramidkv(data: AllocationInput) -> torch.Tensor:
    """PyramidKV: an arithmetic descent over layers from 2 - 1/beta to 1/beta of the base budget."""
    if data.config.surplus == "redistribute":
        return data.uniform([_pyramid_filled(data, int(n)) for n in data.prompt_lengths])
    return data.uniform([_pyramid_layer(data, data.layer, int(n)) for n in data.prompt_lengths])


def _pyramid_layer(data: AllocationInput, layer: int, prompt: int) -> int:
    low = data.base // data.config.pyramid_beta
    high = 2 * data.base - low
    if high >= prompt - data.config.window:  # no layer can hold more than the prompt: flatten the pyramid
        high = prompt - data.config.window
        low = 2 * data.base - high
    step = (high - low) // (data.num_layers - 1) if data.num_layers > 1 else 0
    top = high if data.num_layers > 1 else data.base
    return top - layer * step + data.config.window


def _pyramid_filled(data: AllocationInput, prompt: int) -> int:
    nominal = [_pyramid_layer(data, layer, prompt) for layer in range(data.num_layers)]
    window = data.config.window
    weights = torch.tensor([max(n - window, 0) for n in nominal], dtype=torch.float64)
    floor = torch.full_like(weights, window)
    filled = water_fill(floor, weights, cap=prompt, total=data.config.budget * data.num_layers)
    return int(filled[data.layer])


def adakv(data: AllocationInput) -> torch.Tensor:
    """AdaKV: the top K * base positions of a layer's heads together, with a guaranteed floor per head."""
    rows = [
        _adakv_row(data, data.importance[row], int(length)) for row, length in enumerate(data.prompt_lengths)
    ]
    return torch.stack(rows)


def _adakv_row(data: AllocationInput, importance: torch.Tensor, prompt: int) -> torch.Tensor:
    base, window = data.base, data.config.window
    if prompt <= data.config.budget:  # `allocate` keeps the whole prompt
        return torch.full((data.kv_heads,), prompt, dtype=torch.int64)
    ranked = importance[:, importance.shape[1] - (prompt - window) :].sort(dim=-1, descending=True).values
    # official rule: a head counts by how much of its attention its own top `base` would recover
    mass = ranked.sum(-1, keepdim=True).clamp_min(torch.finfo(ranked.dtype).tiny)
    adjusted = ranked * (ranked[:, :base].sum(-1, keepdim=True) / mass)
    winners = adjusted.flatten().topk(data.kv_heads * base).indices // adjusted.shape[1]
    counts = winners.bincount(minlength=data.kv_heads).cpu()
    floor = int(data.config.adakv_floor * base)
    share = (1 - data.config.adakv_floor) * counts + floor
    if data.config.surplus == "drop":
        return share.round().to(torch.int64) + window
    floors = torch.full((data.kv_heads,), float(floor + window), dtype=torch.float64)
    return water_fill(floors, counts.double(), cap=prompt, total=data.config.budget * data.kv_heads)


def sparsemm(data: AllocationInput) -> torch.Tensor:
    """SparseMM: window + uniform share + share by visual score (paper, "three-component allocation")."""
    if not isinstance(data.config.head_scores, HeadScores):
        raise TypeError("allocation needs a resolved HeadScores table in config.head_scores")
    return _by_score(data, data.config.head_scores)


def random(data: AllocationInput) -> torch.Tensor:
    """SparseMM's rule with head scores drawn uniformly, once for the whole model, from ``seed``."""
    generator = torch.Generator().manual_seed(data.config.seed)
    table = torch.rand(data.num_layers, data.query_heads, generator=generator, dtype=torch.float64)
    return _by_score(data, HeadScores(table))


def _by_score(data: AllocationInput, scores: HeadScores) -> torch.Tensor:
    """r = rho * base for every head; the rest of the whole model's budget by share of the total score."""
    config = data.config
    if config.surplus == "redistribute":
        tables = [_score_filled(config, scores, data.kv_heads, int(n)) for n in data.prompt_lengths]
        return torch.stack([table[data.layer] for table in tables])
    shares = scores.kv_head_shares(data.kv_heads)[data.layer]  # [K]
    uniform = int(config.ratio * data.base)
    scored = (data.base - uniform) * data.num_layers * data.kv_heads
    kept = (shares * scored + uniform).round().to(torch.int64) + config.window
    return kept.expand(len(data.prompt_lengths), -1)


@lru_cache(maxsize=64)  # every layer of a prompt asks for the same table
def _score_filled(config: CompressionConfig, scores: HeadScores, kv_heads: int, prompt: int) -> torch.Tensor:
    """int64 [L, K]: the whole model's budget with no head above the prompt."""
    shares = scores.kv_head_shares(kv_heads)
    floor = torch.full_like(shares, int(config.ratio * (config.budget - config.window)) + config.window)
    total = config.budget * shares.numel()
    return water_fill(floor.flatten(), shares.flatten(), cap=prompt, total=total).view_as(shares)


ALLOCATORS: dict[str, Callable[[AllocationInput], torch.Tensor]] = {
    "snapkv": snapkv,
    "pyramidkv": pyramidkv,
    "adakv": adakv,
    "sparsemm": sparsemm,
    "random": random,
}
