"""One layer's entries at addresses that stay: what a compiled or captured decode step reads and writes."""

from __future__ import annotations

from typing import Any

import torch

from sparsemm_eval import compat
from sparsemm_eval.kernels.dispatch import triton_operators
from sparsemm_eval.kernels.ragged_torch import Blocks, shifted_attention
from sparsemm_eval.kernels.work_list import plan

NO_ROOM = "no room for another generated token: ask session.new_cache(max_new_tokens) for more"


def bucket(count: int) -> int:
    """The next size up in quarter steps between powers of two: few sizes occur, little is wasted."""
    if count <= 8:
        return max(count, 1)
    step = 1 << ((count - 1).bit_length() - 3)
    return -(-count // step) * step


def static_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor that later samples will write to, and that compiled code may take the address of."""
    # one that is made in inference mode could not be written to outside it
    with torch.inference_mode(False):
        tensor = torch.zeros(shape, dtype=dtype, device=device)
    compat.mark_static_address(tensor)
    return tensor


class StaticStore:
    """Keys and values of a layer's segments in one pool, written anew for every sample.

    A segment is a (row, KV head) pair and owns a run of whole blocks, filled from the first slot: its prompt
    entries, then the generated ones. What depends on the sample lies in tensors, never in shapes or Python
    numbers, and a pool is only ever replaced by a larger one.

    Parameters
    ----------
    kernel : str
        ``torch`` or ``triton``, as ``kernels.dispatch.choose`` says.
    block : int
        Slots per block, T.
    bucketed : bool
        Take more than needed, so that later samples fit; False: exactly what this sample needs.

    Attributes
    ----------
    keys, values : torch.Tensor or None
        [slots, D].
    room : int
        Generated tokens that every segment of the present sample has slots for.
    """

    def __init__(self, kernel: str, block: int, *, bucketed: bool = True):
        self.kernel, self.block, self.bucketed = kernel, block, bucketed
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None
        self.room = 0
        self.segments = 0  # S of the present sample
        self.counts = torch.zeros(0, dtype=torch.int64)  # [S] on the CPU: prompt entries
        self._indexes: dict[int, dict[str, torch.Tensor]] = {}  # by S: what a step reads besides the pool
        self._step: Any = triton_operators().ragged_decode_step if kernel == "triton" else None

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values that the present sample takes, unfilled slots included."""
        return 2 * int(self._capacity().sum()) * self.keys.shape[1] * self.keys.element_size()

    @property
    def allocated_bytes(self) -> int:
        """Bytes of keys and values held, for this and for later samples."""
        return 0 if self.keys is None else 2 * self.keys.numel() * self.keys.element_size()

    @property
    def index(self) -> dict[str, torch.Tensor]:
        """``offset``, ``length``, ``capacity``, ``prompt``, int64 [S] each, and what the kernel needs."""
        return self._indexes[self.segments]

    def generated_count(self) -> torch.Tensor:
        """Tokens generated so far: int64 [] on the device."""
        return self.index["length"][0] - self.index["prompt"][0]

    def addresses(self) -> tuple[tuple[int, ...], ...]:
        """Where everything lies that a step touches; a captured step is valid as long as this stays equal."""
        tensors = (self.keys, self.values, *self.index.values())
        return tuple((tensor.data_ptr(), *tensor.shape) for tensor in tensors)

    def fill(
        self, key: torch.Tensor, value: torch.Tensor, kept: torch.Tensor, counts: torch.Tensor, room: int
    ) -> None:
        """Store a prompt in place of the last one.

        Parameters
        ----------
        key, value : torch.Tensor
            [B, K, N, D].
        kept : torch.Tensor
            bool [B, K, N]: the entries to store.
        counts : torch.Tensor
            int64 [B, K] on the CPU: how many those are.
        room : int
            Generated tokens to make room for.
        """
        self.segments, self.counts, self.room = counts.numel(), counts.flatten(), room
        self._allocate(key)
        if self._step is None:  # weights of zero do not silence what is not finite
            self.keys.zero_()
            self.values.zero_()
        self._write_prompt(key.detach(), value.detach(), kept)
        self._write_index(self.counts)

    def make_room(self, tokens: int) -> None:
        """Have slots for this many generated tokens in all; between steps only."""
        if tokens <= self.room:
            return
        length, old = self.index["length"].clone(), (self.keys, self.values)
        capacity, before = self._capacity(), self._offset()
        self.room = tokens
        run = torch.arange(int(capacity.sum())) - before.repeat_interleave(capacity)
        slot = (run + self._offset().repeat_interleave(capacity)).to(self.keys.device)
        self.keys = None
        self._allocate(old[0])
        for pool, source in zip((self.keys, self.values), old, strict=True):
            pool[slot] = source[: len(slot)]
        self._write_index(length)

    def set_length(self, length: torch.Tensor) -> None:
        """Go back to int64 [S] entries per segment; what lies behind them counts as never written."""
        self._write_index(length)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Add one generated token's [B, K, 1, D], then attention of [B, H, 1, D] over all -> [B, 1, H, D].

        Never waits for the device and changes nothing but tensors.
        """
        batch, heads, _, dim = query.shape
        rows = query.reshape(self.segments, -1, dim)
        key, value = key.detach().reshape(-1, dim), value.detach().reshape(-1, dim)
        attend = self._torch_step if self._step is None else self._triton_step
        return attend(rows, key, value, scaling).view(batch, 1, heads, dim)

    def check_room(self) -> None:
        """Fail, on the device and without waiting for it, where the next token has no slot."""
        compat.assert_on_device(self.index["length"][0] < self.index["capacity"][0], NO_ROOM)

    def _triton_step(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        index = self.index
        lists = index["items"], index["ranges"], index["length"]
        return self._step(query, key, value, self.keys, self.values, *lists, scaling)

    def _torch_step(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        index, shape = self.index, (-1, self.block, self.keys.shape[1])
        slot = index["offset"] + index["length"]
        self.keys.index_copy_(0, slot, key)
        self.values.index_copy_(0, slot, value)
        index["bias"].view(-1).index_fill_(0, slot, 0.0)
        index["length"].add_(1)
        blocks = Blocks(self.keys.view(shape), self.values.view(shape), index["bias"], index["owner"])
        return shifted_attention(query, [blocks], scaling)

    def _capacity(self) -> torch.Tensor:
        return (self.counts + self.room + self.block - 1) // self.block * self.block

    def _offset(self) -> torch.Tensor:
        capacity = self._capacity()
        return capacity.cumsum(0) - capacity

    def _allocate(self, like: torch.Tensor) -> None:
        blocks, dim = int(self._capacity().sum()) // self.block, like.shape[-1]
        if self.keys is not None:
            facts = self.keys.dtype, self.keys.device, self.keys.shape[1]
            if facts == (like.dtype, like.device, dim) and len(self.keys) >= blocks * self.block:
                return
        self.keys = self.values = None  # before larger ones are taken
        self._indexes.clear()
        slots = (bucket(blocks) if self.bucketed else blocks) * self.block
        self.keys = self._new((slots, dim), like.dtype, like.device)
        self.values = self._new((slots, dim), like.dtype, like.device)

    def _new(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if self.bucketed:
            return static_zeros(shape, dtype, device)
        return torch.zeros(shape, dtype=dtype, device=device)

    def _write_prompt(self, key: torch.Tensor, value: torch.Tensor, kept: torch.Tensor) -> None:
        kv_heads, length, dim = key.shape[1:]
        pools = (self.keys, key), (self.values, value)
        if bool((self.counts == length).all()):  # everything: no entry needs to be looked up
            for pool, source in pools:
                area = pool[: int(self._capacity().sum())].view(self.segments, -1, dim)
                area[:, :length] = source.reshape(-1, length, dim)
            return
        row, head, position = kept.nonzero(as_tuple=True)  # sorted by row, head, position
        jump = (self._offset() - self.counts.cumsum(0) + self.counts).to(key.device)
        slot = torch.arange(len(position), device=key.device) + jump[row * kv_heads + head]
        for pool, source in pools:
            pool[slot] = source[row, head, position]

    def _write_index(self, length: torch.Tensor) -> None:
        """Describe the present sample to the step, in tensors that stay where they are."""
        device = self.keys.device
        described = {
            "offset": self._offset(),
            "prompt": self.counts,
            "length": length,
            "capacity": self._capacity(),
        }
        if self._step is not None:
            work = plan(described["offset"].to(device), described["capacity"].to(device), len(self.keys))
            described |= {"items": work.items, "ranges": work.ranges}
        else:
            described |= self._blocks(length.cpu())
        held = self._indexes.setdefault(self.segments, {})
        for name, tensor in described.items():
            if name not in held:
                held[name] = self._new(tuple(tensor.shape), tensor.dtype, device)
            held[name].copy_(tensor)

    def _blocks(self, length: torch.Tensor) -> dict[str, torch.Tensor]:
        """Whose every block is, and which slots are used: int64 [M] and float32 [M, T, 1] as Blocks wants."""
        blocks, capacity = len(self.keys) // self.block, self._capacity()
        owner = torch.zeros(blocks, dtype=torch.int64)  # what nobody owns has no used slot either
        taken = torch.arange(self.segments).repeat_interleave(capacity // self.block)
        owner[: len(taken)] = taken
        slot = torch.arange(blocks * self.block).view(blocks, self.block)
        used = slot < (self._offset() + length)[owner, None]
        used[len(taken) :] = False
        bias = torch.full(used.shape, -torch.inf).masked_fill_(used, 0.0)
        return {"owner": owner, "bias": bias.unsqueeze(-1)}
