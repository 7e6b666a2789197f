"""Where decoding continues: the position ids that a prompt was really given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class LastPositions:
    """Position ids of the last token that went through a text decoder.

    Attributes
    ----------
    last : torch.Tensor or None
        int64 [B or 1, 1], or [3, B, 1] where positions have three axes.
    """

    last: torch.Tensor | None = None

    def following(self, batch: int) -> torch.Tensor:
        """Position ids of the next token: int64 [B, 1] or [3, B, 1]."""
        return (self.last + 1).expand(*self.last.shape[:-2], batch, 1).clone()

    def note(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hook before the rotary embedding."""
        positions = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
        self.last = positions[..., -1:]


@contextmanager
def recorded_positions(rotary: torch.nn.Module) -> Iterator[LastPositions]:
    """Note the position ids that a text decoder's rotary embedding is given inside a ``with`` block."""
    positions = LastPositions()
    hook = rotary.register_forward_pre_hook(positions.note, with_kwargs=True)
    try:
        yield positions
    finally:
        hook.remove()
