"""Muon for hidden matrices and AdamW for the rest, on float32 masters of bfloat16 weights."""

import torch

# Embeddings, heads and patch projections map between unlike spaces; Muon is meant for hidden matrices.
_NOT_HIDDEN = ("embed", "lm_head", "newline")


class Optimizer:
    """Updates the given parameters only.

    Build a new one for every stage: momentum of parameters that were frozen meanwhile would be stale.

    Parameters
    ----------
    named : list of (str, Parameter)
    rate : float
        Peak learning rate of both optimizers.
    clip : float
        Bound on the gradient's norm over all parameters.
    """

    def __init__(self, named, rate, clip=1.0):
        self.rate, self.clip = rate, clip
        self.parameters = [parameter for _, parameter in named]
        self.masters = [parameter.detach().clone().float() for parameter in self.parameters]
        hidden, rest = [], []
        for (name, _), master in zip(named, self.masters, strict=True):
            matrix = master.ndim == 2 and not any(part in name for part in _NOT_HIDDEN)
            (hidden if matrix else rest).append(master)
        self.optimizers = [
            torch.optim.Muon(hidden, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    @torch.no_grad()
    def step(self, factor=1.0):
        """Apply the gradients of the parameters, with the learning rate times `factor`, and clear them.

        Raises
        ------
        FloatingPointError
            If the gradient is not finite.
        """
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            master.grad = torch.zeros_like(master) if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self.masters, self.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError("the gradient is not finite; lower the learning rate")
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * factor
            optimizer.step()
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            parameter.copy_(master)
        return norm.item()
