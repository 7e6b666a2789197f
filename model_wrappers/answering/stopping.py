"""Where an answer ends: end tokens, padding, and the task's stop texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

#: A character may take several tokens (byte fallback), never more than this many.
_TOKENS_PER_CHARACTER = 4


class StopTexts(StoppingCriteria):
    """Ends a row as soon as its answer holds one of the stop texts, so that nothing is generated in vain.

    Parameters
    ----------
    tokenizer
        Decodes the answer's tail.
    texts : sequence of str
    prompt_tokens : int
        Length of the padded prompt N.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], prompt_tokens: int):
        self.tokenizer, self.texts, self.prompt_tokens = tokenizer, tuple(texts), prompt_tokens
        # One token more than the longest text needs: the text may begin inside a token.
        self.tail = _TOKENS_PER_CHARACTER * max(map(len, self.texts)) + 1

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Which rows are done: bool [B] for ``input_ids`` int64 [B, N + generated]."""
        start = max(self.prompt_tokens, input_ids.shape[1] - self.tail)
        tails = self.tokenizer.batch_decode(input_ids[:, start:], skip_special_tokens=True)
        done = [any(text in tail for text in self.texts) for tail in tails]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


def cut_tokens(row: Sequence[int], ends: Sequence[int], pad: int) -> list[int]:
    """Generated tokens of one row, up to and including its end token; padding behind it is left out.

    Parameters
    ----------
    row : sequence of int
        Everything behind the prompt.
    ends : sequence of int
        End tokens.
    pad : int
        Fills rows that ended before others.
    """
    for index, token in enumerate(row):
        if token in ends:
            return list(row[: index + 1])
        if token == pad:
            return list(row[:index])
    return list(row)


def cut_text(text: str, until: Sequence[str]) -> str:
    """The text before the first stop text in it."""
    found = [text.index(stop) for stop in until if stop in text]
    return text[: min(found)] if found else text
