"""The memory that all samples of a session share in turn, so that compiled steps stay valid."""

from __future__ import annotations

import torch

from sparsemm_eval.cache.ragged_store import RaggedStore, block_size, static_zeros
from sparsemm_eval.config import CompressionConfig

FULL_BLOCK = 64  # slots per block where whole prompts are kept


class Arena:
    """One fixed RaggedStore per layer; a pool grows when a sample needs more and never shrinks.

    Parameters
    ----------
    config : CompressionConfig
        Decides the block size.
    num_layers : int
        Decoder layers.
    kernel : str
        ``torch`` or ``triton``.
    """

    def __init__(self, config: CompressionConfig, num_layers: int, kernel: str):
        block = block_size(config.budget) if config.evicts else FULL_BLOCK
        self.stores = [RaggedStore(kernel, block, fixed=True) for _ in range(num_layers)]
        self.width: torch.Tensor | None = (
            None  # int64 []: prompt tokens of the present sample, padding included
        )
        self.user: object | None = None  # the cache whose sample the stores hold

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held, for this and for later samples."""
        return sum(store.allocated_bytes for store in self.stores)

    def set_width(self, width: int, device: torch.device) -> None:
        """Note the prompt's padded length where a compiled step can read it."""
        if self.width is None or self.width.device != device:
            self.width = static_zeros((), torch.int64, device)
        self.width.fill_(width)

    def addresses(self) -> tuple[object, ...]:
        """Where everything lies that a decode step touches."""
        return tuple(store.addresses() for store in self.stores)

    def make_room(self, tokens: int) -> None:
        """Have slots for this many generated tokens in every layer; between steps only."""
        for store in self.stores:
            store.make_room(tokens)

    def lengths(self) -> list[torch.Tensor]:
        """Entries per segment and layer, int64 [S] each: where ``go_back`` can return to."""
        return [store.index["length"].clone() for store in self.stores]

    def go_back(self, lengths: list[torch.Tensor]) -> None:
        """Forget every entry that came after."""
        for store, length in zip(self.stores, lengths, strict=True):
            store.set_length(length)
