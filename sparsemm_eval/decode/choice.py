"""Choosing the next token on the device, by the rules of ``generate``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


@dataclass(frozen=True)
class Choice:
    """How a token follows from logits.

    Attributes
    ----------
    samples : bool
        Draw at random; else take the likeliest.
    temperature, top_k, top_p : float, int, float
        Only for drawing; 1, 0 and 1 change nothing.
    repetition_penalty : float
        1 changes nothing.
    """

    samples: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    @property
    def looks_back(self) -> bool:
        """Whether the tokens so far matter."""
        return self.repetition_penalty != 1.0

    def pick(self, logits: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        """The next token of every row; nothing waits for the device.

        Parameters
        ----------
        logits : torch.Tensor
            float32 [B, vocabulary].
        seen : torch.Tensor, optional
            bool [B, vocabulary]: tokens of the prompt and of the answer, where ``looks_back``.

        Returns
        -------
        torch.Tensor
            int64 [B].
        """
        if self.looks_back:
            penalised = torch.where(
                logits < 0, logits * self.repetition_penalty, logits / self.repetition_penalty
            )
            logits = torch.where(seen, penalised, logits)
        if not self.samples:
            return logits.argmax(-1)
        if self.temperature != 1.0:
            logits = TemperatureLogitsWarper(self.temperature)(None, logits)
        if self.top_k:
            logits = TopKLogitsWarper(self.top_k)(None, logits)
        if self.top_p < 1.0:
            logits = TopPLogitsWarper(self.top_p)(None, logits)
        weights = logits.softmax(-1)
        # what torch.multinomial does for one draw, without its checks, which a graph cannot hold
        return (weights / torch.empty_like(weights).exponential_(1)).argmax(-1)
