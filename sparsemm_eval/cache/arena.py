"""The memory that all samples of a session share in turn, so that compiled steps stay valid."""

from __future__ import annotations

import torch

from sparsemm_eval import compat

NO_ROOM = "no room for another generated token: ask session.new_cache(max_new_tokens) for more"


def writable() -> torch.inference_mode:
    """Tensors made inside can be written to in any mode; those made in inference mode only there."""
    return torch.inference_mode(False)


def static_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor that later samples will write to, and that compiled code may take the address of."""
    with writable():
        tensor = torch.zeros(shape, dtype=dtype, device=device)
    compat.mark_static_address(tensor)
    return tensor


def fits(pool: torch.Tensor | None, like: torch.Tensor, slots: int) -> bool:
    """Whether a pool [slots, D] can hold so many entries [..., D] of this kind."""
    if pool is None:
        return False
    facts = pool.dtype, pool.device, pool.shape[-1]
    return facts == (like.dtype, like.device, like.shape[-1]) and len(pool) >= slots


class ArenaBase:
    """What the arenas of both kernels have in common.

    Attributes
    ----------
    stores : list
        One per layer.
    width : torch.Tensor or None
        int64 []: prompt tokens of the present sample, padding included.
    user : object or None
        The cache whose sample the stores hold.
    """

    stores: list

    def __init__(self) -> None:
        self.width: torch.Tensor | None = None
        self.user: object | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held, for this and for later samples."""
        return sum(store.allocated_bytes for store in self.stores)

    def set_width(self, width: int, device: torch.device) -> None:
        """Note the prompt's padded length where a compiled step can read it."""
        if self.width is None or self.width.device != device:
            self.width = static_zeros((), torch.int64, device)
        self.width.fill_(width)
