"""The tokens generated so far, on the host: where each row ends, by the rules of ``generate``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sparsemm_eval.decode.settings import LoopSettings

Criterion = Callable[[torch.Tensor, None], torch.Tensor]


class GeneratedTokens:
    """Tokens of the prompt and the answer so far, and which rows go on.

    Tokens come several columns at a time. Each column is treated as ``generate`` would have treated it, so
    what was generated behind the end of all rows is dropped.

    Parameters
    ----------
    tokens : torch.Tensor
        int64 [B, N] of the prompt, padding included.
    settings : LoopSettings
    criteria : sequence of callable
        Further stopping criteria: (tokens [B, N + generated] on the CPU, None) -> bool [B].

    Attributes
    ----------
    length : int
        Tokens generated.
    """

    def __init__(self, tokens: torch.Tensor, settings: LoopSettings, criteria: Sequence[Criterion] = ()):
        self.settings, self.criteria = settings, tuple(criteria)
        self.prompt_tokens, self.length = tokens.shape[1], 0
        self._tokens = torch.empty(len(tokens), tokens.shape[1] + settings.max_new_tokens, dtype=torch.int64)
        self._tokens[:, : self.prompt_tokens] = tokens
        self.going_on = torch.ones(len(tokens), dtype=torch.bool)
        self._ends = torch.tensor(settings.ends, dtype=torch.int64)

    @property
    def tokens(self) -> torch.Tensor:
        """int64 [B, N + length] on the host: prompts and answers."""
        return self._tokens[:, : self.prompt_tokens + self.length]

    @property
    def missing(self) -> int:
        """Tokens that may still come."""
        return self.settings.max_new_tokens - self.length

    @property
    def is_complete(self) -> bool:
        """Whether no row goes on."""
        return self.missing <= 0 or not bool(self.going_on.any())

    def extend(self, columns: torch.Tensor) -> None:
        """Take int64 [B, C] further tokens, as far as they are wanted."""
        for column in columns.cpu().unbind(1):
            if self.is_complete:
                return
            if self.settings.ends:
                column = torch.where(self.going_on, column, self.settings.pad)
            self._tokens[:, self.prompt_tokens + self.length] = column
            self.length += 1
            self.going_on = self.going_on & ~torch.isin(column, self._ends)
            for criterion in self.criteria:
                self.going_on = self.going_on & ~criterion(self.tokens, None).cpu()
