"""Muon for hidden matrices and AdamW for the rest, on float32 masters of bfloat16 weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

# Embeddings, heads and patch projections map between unlike spaces; Muon is meant for hidden matrices.
# Factors of an adapter are learned as in the LoRA paper.
_NOT_HIDDEN = ("embed", "lm_head", "newline", "lora_")
_LARGEST_NORM = 1.0  # of the gradient over all parameters


class Optimizer:
    """Updates the given parameters only, with one peak learning rate.

    Build a new one for every stage: momentum of parameters that were frozen meanwhile would be stale.
    """

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], rate: float) -> None:
        self.rate = rate
        self.parameters = [parameter for _, parameter in named]
        self.masters = [parameter.detach().clone().float() for parameter in self.parameters]
        hidden, rest = [], []
        for (name, _), master in zip(named, self.masters, strict=True):
            matrix = master.ndim == 2 and not any(part in name for part in _NOT_HIDDEN)
            (hidden if matrix else rest).append(master)
        self.optimizers: list[torch.optim.Optimizer] = []
        if hidden:
            muon = torch.optim.Muon(hidden, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
            self.optimizers.append(muon)
        if rest:
            self.optimizers.append(torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0))

    @torch.no_grad()
    def step(self, factor: float = 1.0) -> None:
        """Apply the gradients of the parameters, with the learning rate times `factor`, and clear them."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            master.grad = torch.zeros_like(master) if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self.masters, _LARGEST_NORM)
        if not torch.isfinite(norm):
            raise FloatingPointError("the gradient is not finite; lower the learning rate")
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * factor
            optimizer.step()
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            parameter.copy_(master)
