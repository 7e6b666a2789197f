"""One decode step on tensors that stay where they are, to be run as it is or captured."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from sparsemm_eval import compat
from sparsemm_eval.cache.static_cache import StaticCache
from sparsemm_eval.decode.choice import Choice, row_noise

RECOMPILE_LIMIT = 64  # shapes of one compiled step; pools come in few sizes, so that batch sizes decide
ONE_ROW = {"coordinate_descent_tuning": True}  # Inductor's switch for them
CHECK_EVERY = 8  # tokens between two looks at what was generated


class DecodeStep:
    """Token in, token out; everything it changes is a tensor of fixed address.

    Parameters
    ----------
    forward : callable
        (tokens [B, 1], positions, cache) -> logits [B, vocabulary].
    choice : Choice
        With ``by_row``, ``begin`` needs the rows' seeds.
    tokens : torch.Tensor
        int64 [B, 1]; its shape and device count here, not what it holds.
    positions : torch.Tensor
        int64 [B, 1] or [3, B, 1], likewise.
    vocabulary : int
        Of the logits.
    """

    def __init__(
        self,
        forward: Callable[[torch.Tensor, torch.Tensor, StaticCache], torch.Tensor],
        choice: Choice,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        vocabulary: int,
    ):
        self.forward, self.choice = forward, choice
        self.cache: StaticCache | None = None
        batch = len(tokens)
        with torch.inference_mode(False):  # else nothing outside inference mode could write to them
            self.tokens = torch.zeros(tokens.shape, dtype=torch.int64, device=tokens.device)
            self.positions = torch.zeros(positions.shape, dtype=torch.int64, device=tokens.device)
            self.history = torch.zeros(batch, CHECK_EVERY, dtype=torch.int64, device=tokens.device)
            self.column = torch.zeros(1, dtype=torch.int64, device=tokens.device)
            self.seeds = torch.zeros(batch, dtype=torch.int64, device=tokens.device)
            self.drawn = torch.zeros(1, dtype=torch.int64, device=tokens.device)
            self.seen = (
                torch.zeros(batch, vocabulary, dtype=torch.bool, device=tokens.device)
                if choice.looks_back
                else None
            )

    def begin(
        self,
        cache: StaticCache,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        seeds: torch.Tensor | None = None,
    ) -> None:
        """Start behind int64 [B, N + 1] tokens, the last of which is the first one generated."""
        self.cache = cache
        if seeds is not None:
            self.seeds.copy_(seeds)
            self.drawn.fill_(1)
        self.tokens.copy_(tokens[:, -1:])
        self.positions.copy_(positions)
        if self.seen is not None:
            self.seen.zero_().scatter_(1, tokens, True)

    def __call__(self) -> None:
        """Feed the last token, choose the next one and note it in ``history``."""
        logits = self.forward(self.tokens, self.positions, self.cache)
        noise = row_noise(self.seeds, self.drawn, logits.shape[1]) if self.choice.by_row else None
        chosen = self.choice.pick(logits.float(), self.seen, noise)[:, None]
        if self.seen is not None:
            self.seen.scatter_(1, chosen, True)
        self.history.index_copy_(1, self.column, chosen)
        self.tokens.copy_(chosen)
        self.positions.add_(1)
        self.column.add_(1)
        self.drawn.add_(1)

    @property
    def state(self) -> tuple[torch.Tensor, ...]:
        """What a step changes, the cache aside."""
        seen = () if self.seen is None else (self.seen,)
        return self.tokens, self.positions, self.history, self.column, self.drawn, *seen


def forward_of(
    model: PreTrainedModel, compiled: bool
) -> Callable[[torch.Tensor, torch.Tensor, StaticCache], torch.Tensor]:
    """The model's decode forward as a function of tensors, compiled as one graph if wanted."""

    def forward(tokens: torch.Tensor, positions: torch.Tensor, cache: StaticCache) -> torch.Tensor:
        output = model(input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True)
        return output.logits[:, -1]

    if not compiled:
        return forward
    by_graph = torch.compile(forward, fullgraph=True, dynamic=False)
    # products with a single row, as sums that are fused with what comes before and after them
    alone = torch.compile(forward, fullgraph=True, dynamic=False, options=ONE_ROW)

    def compiled_forward(tokens: torch.Tensor, positions: torch.Tensor, cache: StaticCache) -> torch.Tensor:
        try:
            single = len(tokens) == 1 and tokens.device.type == "cuda"
            return (alone if single else by_graph)(tokens, positions, cache)
        except Exception as error:
            if not compat.is_recompile_limit(error):
                raise
            warnings.warn(
                f"decode=fused has compiled its step for {RECOMPILE_LIMIT} shapes of batches and caches, and "
                "runs others uncompiled: use fewer batch sizes, or decode=graph",
                stacklevel=2,
            )
            return forward(tokens, positions, cache)

    return compiled_forward
