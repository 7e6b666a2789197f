"""The methods under test, from the registry, and configs of them on small numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sparsemm_eval import CompressionConfig, HeadScores
from sparsemm_eval.methods import Method, PromptView, keep, methods, register
from sparsemm_eval.methods.registry import _REGISTRY

EVICTING = [method.name for method in methods().values() if method.evicts]
MASKING = [method.name for method in methods().values() if method.mask is not None]
#: Those that change no answer when nothing is evicted.
LOSSLESS = [name for name in methods() if name not in MASKING]


def config_of(method: str, scores: HeadScores | None = None, **settings) -> CompressionConfig:
    """A config of any method: settings that play no part in it are left out."""
    return CompressionConfig.fitting(method, head_scores=scores, **settings)


@contextmanager
def registered(method: Method) -> Iterator[Method]:
    """A method that is known inside a ``with`` block only."""
    before = dict(methods()), dict(_REGISTRY.scores)
    try:
        yield register(method)
    finally:
        _REGISTRY.methods, _REGISTRY.scores = before


def positions(config: CompressionConfig, views: list[PromptView]) -> list[list[list[list[int]]]]:
    """Kept positions as lists, [L][B][K]."""
    return [
        [[head.nonzero().flatten().tolist() for head in row] for row in mask] for mask in keep(config, views)
    ]


def random_views(
    heads: int, kv_heads: int, lengths: list[int], layers: int = 3, dim: int = 8, seed: int = 0
) -> list[PromptView]:
    """Random queries and keys of a batch padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    valid = torch.stack([torch.arange(width) >= width - n for n in lengths])
    return [
        PromptView(
            torch.randn(len(lengths), heads, width, dim, generator=generator) * 2,
            torch.randn(len(lengths), kv_heads, width, dim, generator=generator) * 2,
            valid=valid if len(set(lengths)) > 1 else None,
        )
        for _ in range(layers)
    ]
