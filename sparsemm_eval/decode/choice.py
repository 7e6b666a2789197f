"""Choosing the next token on the device, by the rules of ``generate``, or by draws of each row's own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import (
    LogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


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
    by_row : bool
        Draw every row from a seed of its own, not from the device's generator.
    """

    samples: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    by_row: bool = False

    @property
    def looks_back(self) -> bool:
        """Whether the tokens so far matter."""
        return self.repetition_penalty != 1.0

    def pick(
        self, logits: torch.Tensor, seen: torch.Tensor | None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The next token of every row; nothing waits for the device.

        Parameters
        ----------
        logits : torch.Tensor
            float32 [B, vocabulary].
        seen : torch.Tensor, optional
            bool [B, vocabulary]: tokens of the prompt and of the answer, where ``looks_back``.
        noise : torch.Tensor, optional
            float32 [B, vocabulary] from ``row_noise``, where drawing is ``by_row``.

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
        return (weights / (torch.empty_like(weights).exponential_(1) if noise is None else noise)).argmax(-1)


def row_noise(seeds: torch.Tensor, step: torch.Tensor | int, vocabulary: int) -> torch.Tensor:
    """Exponential draws that depend on a row's seed, the token's number and nothing else.

    They are hashes (the mixing function of SplitMix64, Steele et al., OOPSLA 2014), not the numbers of a
    generator with a state: the same on every device, for every batch, and inside a captured step.

    Parameters
    ----------
    seeds : torch.Tensor
        int64 [B].
    step : torch.Tensor or int
        Tokens generated before, int64 [] or [1].
    vocabulary : int

    Returns
    -------
    torch.Tensor
        float32 [B, vocabulary], above 0.
    """
    place = torch.arange(vocabulary, device=seeds.device)
    mixed = _mixed(_mixed(_mixed(seeds) + step)[:, None] + place)
    uniform = ((mixed >> 40 & 0xFFFFFF) + 0.5) * 2.0**-24
    return -uniform.log()


def _mixed(value: torch.Tensor) -> torch.Tensor:
    """Hash int64 to int64; products wrap around, and ``&`` makes arithmetic shifts logical ones."""
    value = value + -0x61C8864680B583EB
    value = (value ^ (value >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    value = (value ^ (value >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return value ^ (value >> 31 & 0x1FFFFFFFF)


class RowSampling(LogitsProcessor):
    """Lets ``generate(do_sample=False)`` sample, every row from a seed of its own, whatever its neighbours.

    Parameters
    ----------
    choice : Choice
        ``by_row``; without repetition penalty, which ``generate`` applies itself.
    seeds : torch.Tensor
        int64 [B], on the model's device.
    prompt_tokens : int
        N, padding included.
    """

    def __init__(self, choice: Choice, seeds: torch.Tensor, prompt_tokens: int):
        self.choice, self.seeds, self.prompt_tokens = choice, seeds, prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits [B, vocabulary] that leave the drawn token as the only one possible."""
        noise = row_noise(self.seeds, input_ids.shape[1] - self.prompt_tokens, scores.shape[1])
        chosen = self.choice.pick(scores.float(), None, noise)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)
