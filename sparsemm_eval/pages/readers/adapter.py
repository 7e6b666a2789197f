"""Low-rank changes of a frozen language model (LoRA, Hu et al. 2022): learned, stored and merged.

A projection's weight W [out, in] becomes W + SCALE * B A with A [rank, in] and B [out, rank].
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

SCALE = 2.0
#: Part of a layer, its projections, and the rank of their changes.
TARGETS = (
    ("self_attn", ("q_proj", "k_proj", "v_proj", "o_proj"), 16),
    ("mlp", ("gate_proj", "up_proj", "down_proj"), 8),
)


class Adapted(nn.Module):
    """A frozen projection with its low-rank change; the change is nothing at first."""

    def __init__(self, base: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        weight = base.weight
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features, dtype=weight.dtype))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, dtype=weight.dtype))
        nn.init.kaiming_uniform_(self.lora_a, a=5**0.5, generator=generator)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The projection of [..., in] to [..., out]."""
        return self.base(hidden) + SCALE * (hidden @ self.lora_a.T) @ self.lora_b.T


def _projections(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module, str, int]]:
    """Name, parent, attribute and rank of every adapted projection of the text model."""
    for part, names, rank in TARGETS:
        for number, layer in enumerate(model.model.language_model.layers):
            for name in names:
                yield f"layers.{number}.{name}", getattr(layer, part), name, rank


def add(model: PreTrainedModel) -> None:
    """Freeze a model and give the projections of its text model a change that can be learned.

    The first factors are the same every time.
    """
    model.requires_grad_(False)
    generator = torch.Generator()
    for _, parent, name, rank in _projections(model):
        setattr(parent, name, Adapted(getattr(parent, name), rank, generator))


def factors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What a model with `add` has learned, by name."""
    found = {}
    for name, parent, attribute, _ in _projections(model):
        adapted = getattr(parent, attribute)
        found |= {f"{name}.lora_a": adapted.lora_a, f"{name}.lora_b": adapted.lora_b}
    return found


@torch.no_grad()
def put(model: PreTrainedModel, learned: dict[str, torch.Tensor]) -> None:
    """Give a model with `add` what another has learned."""
    for name, parameter in factors(model).items():
        parameter.copy_(learned[name])


@torch.no_grad()
def merge(model: PreTrainedModel, learned: dict[str, torch.Tensor]) -> None:
    """Add what was learned to the weights of a plain model."""
    for name, parent, attribute, _ in _projections(model):
        weight = getattr(parent, attribute).weight
        # In double precision, so that every machine rounds to the same weights.
        change = learned[f"{name}.lora_b"].double() @ learned[f"{name}.lora_a"].double()
        weight.copy_(weight.double() + SCALE * change)
