"""A prompt whose layers from one on hold fewer tokens than the ones before: what came from where."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from sparsemm_eval.pruning.base import Pruner, keep_best, kept_counts, packed


@dataclass
class PrunedPrompt:
    """One batch of prompts, N tokens wide with padding, W from layer ``layer`` on.

    Attributes
    ----------
    pruner : Pruner
    share : float
        Of each row's image tokens that stay.
    layer : int
        The first layer that gets the shorter prompt.
    everything, images : torch.Tensor
        bool [B, N]: what is no padding, and what is an image token.
    closes_up : bool
        Whether kept tokens take the positions of those that were left out.
    kept, index : torch.Tensor or None
        bool [B, N], and int64 [B, W] of ``packed``: once it is decided what is kept.
    valid : torch.Tensor or None
        bool [B, W]; None where no row is filled up, so that no mask is needed.
    inputs : dict
        Of the layers behind, besides their hidden states; while the prompt runs through them.
    once : dict
        What methods compute once for these layers; see ``PromptView``.
    """

    pruner: Pruner
    share: float
    layer: int
    everything: torch.Tensor
    images: torch.Tensor
    closes_up: bool = False
    kept: torch.Tensor | None = None
    index: torch.Tensor | None = None
    valid: torch.Tensor | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    once: dict[Hashable, Any] = field(default_factory=dict)

    @cached_property
    def lengths(self) -> torch.Tensor:
        """int64 [B] on the CPU: tokens before anything was left out, without padding."""
        return self.everything.sum(-1).cpu()

    @property
    def dropped(self) -> int:
        """By how much the batch has become narrower: N - W."""
        return self.everything.shape[1] - self.index.shape[1]

    @cached_property
    def fewer(self) -> torch.Tensor:
        """int64 [B] on the CPU: tokens that are left, known before it is decided which."""
        if self.kept is not None:
            return self.kept.sum(-1).cpu()
        return self.lengths + (self.kept_counts - self.images.sum(-1)).cpu()

    def layer_lengths(self, layers: int) -> torch.Tensor:
        """int64 [layers, B] on the CPU: tokens of every layer."""
        before, behind = self.lengths.expand(self.layer, -1), self.fewer.expand(layers - self.layer, -1)
        return torch.cat([before, behind])

    @property
    def kept_counts(self) -> torch.Tensor:
        """int64 [B]: image tokens that shall stay."""
        return kept_counts(self.images.sum(-1), self.share)

    def decide(
        self, query: torch.Tensor, key: torch.Tensor, valid: torch.Tensor | None, scaling: float | None
    ) -> None:
        """Keep the image tokens that the pruner ranks highest; arguments as of ``Pruner.rank``."""
        rank = self.pruner.rank(query, key, valid, scaling)
        images = self.images.to(rank.device)
        self.keep(keep_best(rank, images, self.kept_counts))

    def keep(self, images: torch.Tensor) -> None:
        """Keep these image tokens, bool [B, N], and all text."""
        others = self.everything & ~self.images
        self.kept = others.to(images.device) | images
        self.index, valid = packed(self.kept)
        self.valid = None if bool(valid.all()) else valid

    @property
    def remaining_images(self) -> torch.Tensor:
        """bool [B, W]: image tokens of the shorter prompt; filler is none."""
        return self.rows(self.images.to(self.kept.device) & self.kept)

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """What is kept of a tensor [B or 1, N, ...] -> [B, W, ...]."""
        index = self.index.to(tensor.device)
        tensor = tensor.expand(len(index), *tensor.shape[1:])
        return tensor.gather(
            1, index.view(*index.shape, *[1] * (tensor.ndim - 2)).expand(-1, -1, *tensor.shape[2:])
        )

    def of_all_layers(self, received: torch.Tensor) -> torch.Tensor:
        """What is kept of a tensor [L, B, K, N] -> [L, B, K, W]."""
        return self.rows(received.permute(1, 3, 0, 2)).permute(2, 0, 3, 1)

    def prefill_mask(self) -> torch.Tensor | None:
        """bool [B, 1, W, W] for the shorter prompt; None where causality is all."""
        if self.valid is None:
            return None
        width = self.valid.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=self.valid.device).tril()
        return causal & self.valid[:, None, None]

    def decode_mask(self, length: int) -> torch.Tensor | None:
        """bool [B, 1, 1, length] over a layer that holds the whole shorter prompt and what was generated."""
        if self.valid is None:
            return None
        more = length - self.valid.shape[1]
        return torch.nn.functional.pad(self.valid, (0, more), value=True)[:, None, None]
