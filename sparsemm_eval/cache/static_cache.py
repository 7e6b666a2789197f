"""StaticCache: a RaggedCache whose decode step has fixed shapes and addresses, to be compiled or captured."""

from __future__ import annotations

import torch

from sparsemm_eval.cache.ragged_cache import Arena, RaggedCache, RaggedLayer, Store
from sparsemm_eval.config import CompressionConfig
from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.methods.keep import Kept


class StaticLayer(RaggedLayer):
    """One decoder layer's entries in the arena. A decode step changes tensors only, no Python state."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take new keys and values [B, K, T, D] and hand them back; ``attend`` stores a generated token's."""
        self._check_tokens(key_states.shape[2])
        if not self.is_prefilled:
            self.is_initialized = True
            self.seen += key_states.shape[2] + self._dropped
            self.keys, self.values = key_states, value_states
        return key_states, value_states

    def _stored(self, key: torch.Tensor, value: torch.Tensor, kept: Kept) -> Store:
        arena = self.shared.arena
        if self.layer == 0:
            arena.set_width(self.prompt_width, key.device)
        arena.fill(self.layer, key, value, kept, self.shared.reserve)
        return arena.stores[self.layer]

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Add one token's [B, K, 1, D], then its attention [B, H, 1, D] over all entries -> [B, 1, H, D]."""
        if self.layer == 0:  # all layers have the same room
            self.store.check_room()
        return self._attend(query, key, value, scaling)

    def get_seq_length(self) -> int | torch.Tensor:
        """Tokens seen, not entries kept; int64 [] on the device once the prompt is compressed."""
        if not self.is_prefilled:
            return self.seen
        return self.shared.arena.width + self.store.generated_count()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(length, offset) of the prompt's mask; decode steps have none."""
        return int(query_length), 0

    @property
    def generated(self) -> int:
        """Tokens appended after the prompt."""
        return int(self.store.generated_count())


class CompileableLayer(StaticLayer):
    """A StaticLayer that ``generate`` is told to compile."""

    is_compileable = True


class StaticCache(RaggedCache):
    """All layers of one batch, in a session's arena; a newer cache of the same arena puts an end to it.

    Parameters
    ----------
    config, num_layers, arena
        See ``Shared``.
    reserve : int
        Most tokens that can be generated.
    compileable : bool
        Whether ``generate`` shall compile its decode step.
    """

    def __init__(
        self, config: CompressionConfig, num_layers: int, reserve: int, arena: Arena, *, compileable: bool
    ):
        self.arena, arena.user = arena, self
        self.layer_type = CompileableLayer if compileable else StaticLayer
        super().__init__(config, num_layers, reserve, arena=arena)

    def check_current(self) -> None:
        """Fail where the arena holds another cache's sample.

        Raises
        ------
        UnsupportedError
            If a newer cache of the same session was made.
        """
        if self.arena.user is not self:
            raise UnsupportedError(
                "this cache was replaced by a newer one of the same session: with decode=compile, graph or "
                "fused all samples share one arena, so finish one before the next, or use decode=eager"
            )
