"""Greedy decoding and sampling with few looks at the device: the tokens of ``generate``, faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from sparsemm_eval.cache.static_cache import StaticCache
from sparsemm_eval.decode.capture import ReadySteps
from sparsemm_eval.decode.generated import GeneratedTokens
from sparsemm_eval.decode.positions import recorded_positions
from sparsemm_eval.decode.settings import for_first_token, generation_config, loop_settings
from sparsemm_eval.decode.step import CHECK_EVERY
from sparsemm_eval.errors import UnsupportedError

FIRST_ROOM = 256  # generated tokens to make room for at first; doubled as often as needed


class DecodeLoop:
    """``generate`` for one model inside a compression session.

    Parameters
    ----------
    model : PreTrainedModel
    rotary : torch.nn.Module
        The text decoder's rotary embedding, which positions are read from.
    compiled : bool
        Whether the step is compiled before it is captured.
    """

    def __init__(self, model: PreTrainedModel, rotary: torch.nn.Module, *, compiled: bool):
        self.model, self.rotary = model, rotary
        self._steps = ReadySteps(model, compiled=compiled)

    @torch.no_grad()
    def generate(
        self,
        original: Callable[..., torch.Tensor],
        new_cache: Callable[[int], StaticCache],
        kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, StaticCache]:
        """Answer a batch.

        The prompt and the first token are left to ``original``, the model's own ``generate``; then the loop
        feeds tokens one by one, looking at them every few steps only.

        Parameters
        ----------
        original : callable
            The model's ``generate``.
        new_cache : callable
            Makes a cache with room for so many generated tokens.
        kwargs : dict
            Of the call, by name.

        Returns
        -------
        tokens, cache
            int64 [B, N + generated], prompts included, as ``generate`` returns them.

        Raises
        ------
        UnsupportedError
            For what the loop does not do.
        """
        prompt = kwargs.get("input_ids", kwargs.get("inputs"))
        if prompt is None:
            raise UnsupportedError("input_ids=None: decode=graph and fused need token ids, use decode=eager")
        config = generation_config(self.model, kwargs)
        settings = loop_settings(config, kwargs, prompt.shape[1])
        cache = new_cache(min(settings.max_new_tokens, FIRST_ROOM))
        with recorded_positions(self.rotary) as positions:
            tokens = original(past_key_values=cache, **for_first_token(config, kwargs))
        answer = GeneratedTokens(tokens[:, :-1], settings, kwargs.get("stopping_criteria") or ())
        answer.extend(tokens[:, -1:])
        if not answer.is_complete:
            following = positions.following(len(tokens))
            step = self._steps.begin(cache, settings.choice, tokens, following, settings.seeds)
            self._continue(answer, cache, step)
        return answer.tokens.to(tokens.device), cache

    @property
    def captures(self) -> int:
        """Graphs recorded so far; on a CPU, how often one would have been."""
        return self._steps.captures

    @property
    def capture_seconds(self) -> float:
        """Spent on them."""
        return self._steps.capture_seconds

    def _continue(self, answer: GeneratedTokens, cache: StaticCache, step: Any) -> None:
        stored = 0
        while not answer.is_complete:
            count = min(CHECK_EVERY, answer.missing)
            stored += count
            room = cache.arena.room
            if stored > room:
                cache.arena.make_room(min(max(2 * room, stored), answer.settings.max_new_tokens))
            answer.extend(self._steps.run(step, count))
