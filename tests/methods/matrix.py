"""The methods under test, from the registry, and configs of them on small numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sparsemm_eval import CompressionConfig, HeadScores
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.methods import Method, PromptView, Rotation, keep, methods, register, scores
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
    """All a method may look at, random, of a batch padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    batch, width = len(lengths), max(lengths)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 2

    valid = torch.stack([torch.arange(width) >= width - n for n in lengths])
    place = torch.arange(width) - (width - torch.tensor(lengths))[:, None]  # from each prompt's begin
    received = torch.rand(layers, batch, kv_heads, width, generator=generator)
    return [
        PromptView(
            normal(batch, heads, width, dim),
            normal(batch, kv_heads, width, dim),
            normal(batch, kv_heads, width, dim),
            valid=valid if len(set(lengths)) > 1 else None,
            images=(place >= 2) & (place < torch.tensor(lengths)[:, None] * 2 // 3),
            output_weight=normal(5, heads * dim),
            rotation=rotation_of(place, dim),
            received=received,
        )
        for _ in range(layers)
    ]


def rotation_of(place: torch.Tensor, dim: int) -> Rotation:
    """RoPE at positions int64 [B, N], which go on after the last one."""

    def angles(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        frequency = 100.0 ** (-torch.arange(0, dim, 2) / dim)
        angle = (positions[..., None] * frequency).repeat(1, 1, 2)
        return angle.cos(), angle.sin()

    def future(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(part.mean(1) for part in angles(place[:, -1:] + torch.arange(1, count + 1)))

    return Rotation(*angles(place), future)


def alone(view: PromptView, row: int, length: int) -> PromptView:
    """A prompt of a batch by itself, without padding."""
    here, tokens = slice(row, row + 1), slice(view.length - length, None)
    cos, sin = (part[here, tokens] for part in (view.rotation.cos, view.rotation.sin))
    return PromptView(
        *(part[here, :, tokens] for part in (view.query, view.key, view.value)),
        images=view.images[here, tokens],
        output_weight=view.output_weight,
        rotation=Rotation(cos, sin, lambda count: tuple(part[here] for part in view.rotation.future(count))),
        received=view.received[:, here, :, tokens],
    )


def pairs() -> list[tuple[str, str | None]]:
    """Every method with its own score, and with every other that goes with it."""
    found = []
    for method in LOSSLESS:
        for score in (None, *scores()) if method in EVICTING else (None,):
            try:
                config_of(method, score=score, budget=200)
            except ConfigError:
                continue
            found.append((method, score))
    return found
