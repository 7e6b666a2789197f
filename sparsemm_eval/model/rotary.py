"""What a text decoder's rotary embedding did to a prompt, and would do to the positions after it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparsemm_eval.decode.positions import LastPositions
from sparsemm_eval.methods.base import Rotation


@dataclass(frozen=True)
class Rotary:
    """A rotary embedding and the position ids it was given last."""

    module: torch.nn.Module
    positions: LastPositions

    def rotation(self, cos: torch.Tensor, sin: torch.Tensor) -> Rotation:
        """For the prompt whose layers were given cos and sin [B or 1, N, D]."""
        last, means = self.positions.last, {}

        def future(count: int) -> tuple[torch.Tensor, torch.Tensor]:
            if count not in means:
                ids = last + torch.arange(1, count + 1, device=last.device)
                # not through hooks, which note positions of tokens
                angles = self.module.forward(cos[:, :1], ids)
                # text that follows has the same position on all axes of a model with several
                angles = [part[0] if part.ndim == 4 else part for part in angles]
                means[count] = tuple(part.float().mean(-2) for part in angles)
            return means[count]

        return Rotation(cos, sin, future)
