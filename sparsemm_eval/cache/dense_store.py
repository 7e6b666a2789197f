"""Where the entries of an uncompressed layer live: one dense buffer with room to grow."""

from __future__ import annotations

import torch

RESERVE = 256  # generated tokens to make room for at a time, at most


class DenseStore:
    """Keys and values [B, K, N, D] of a layer that evicts nothing; left padding stays in place, masked.

    Generated tokens are written behind the prompt. Only when the reserve is used up is the buffer copied into
    a longer one, once per ``RESERVE`` tokens.
    """

    def __init__(self, key: torch.Tensor, value: torch.Tensor, reserve: int):
        self.length = key.shape[2]
        self.keys, self.values = key, value
        self._enlarge(max(1, min(reserve, RESERVE)))

    def _enlarge(self, extra: int) -> None:
        for name in ("keys", "values"):
            old = getattr(self, name)[:, :, : self.length]
            with torch.inference_mode(False):  # steps may run in another mode than the prompt did
                new = old.new_empty(*old.shape[:2], self.length + extra, old.shape[3])
            new[:, :, : self.length] = old
            setattr(self, name, new)

    @property
    def nbytes(self) -> int:
        """Allocated bytes of keys and values, padding and reserve included."""
        return 2 * self.keys.numel() * self.keys.element_size()

    def append(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add one generated token's [B, K, 1, D]; returns views of all keys and values."""
        if self.length == self.keys.shape[2]:
            self._enlarge(RESERVE)
        self.keys[:, :, self.length] = key[:, :, 0]
        self.values[:, :, self.length] = value[:, :, 0]
        self.length += 1
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]
