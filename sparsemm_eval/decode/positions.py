"""Where decoding continues: the position ids that a prompt was really given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.model.text_decoder import TextDecoder


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
def recorded_positions(model: PreTrainedModel, decoder: TextDecoder) -> Iterator[LastPositions]:
    """Note the position ids of every forward call inside a ``with`` block.

    Raises
    ------
    UnsupportedError
        If the model's text decoder has no rotary embedding.
    """
    found = [
        module.rotary_emb
        for module in model.modules()
        if hasattr(module, "rotary_emb") and getattr(module, "config", None) is decoder.config
    ]
    if not found:
        raise UnsupportedError(
            f"{type(model).__name__} has no rotary embedding to read positions from: use decode=eager"
        )
    positions = LastPositions()
    hook = found[0].register_forward_pre_hook(positions.note, with_kwargs=True)
    try:
        yield positions
    finally:
        hook.remove()
