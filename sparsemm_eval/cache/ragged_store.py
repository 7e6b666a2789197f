"""Where the entries of a compressed layer live: blocks of ragged segments, appended to in place."""

from __future__ import annotations

from typing import Any

import torch

from sparsemm_eval import compat
from sparsemm_eval.cache.arena import NO_ROOM, ArenaBase, fits, static_zeros, writable
from sparsemm_eval.config import CompressionConfig
from sparsemm_eval.kernels.ragged_torch import Blocks, ragged_attention, shifted_attention
from sparsemm_eval.methods.keep import Kept

FULL_BLOCK = 64  # slots per block where whole prompts are kept
RESERVE = 256  # generated tokens to make room for at a time, at most


def block_size(mean_entries: float) -> int:
    """Slots per block: larger is faster, and a segment wastes half a block on average."""
    return 64 if mean_entries >= 512 else 32


def bucket(count: int) -> int:
    """The next size up in quarter steps between powers of two: few sizes occur, little is wasted."""
    if count <= 8:
        return max(count, 1)
    step = 1 << ((count - 1).bit_length() - 3)
    return -(-count // step) * step


class RaggedStore:
    """Keys and values of all segments of a layer; a segment is one (row, KV head) pair.

    The pool begins with every segment's prompt entries, in whole blocks that never change. Behind them come
    chunks of room for generated tokens: all segments grow by one entry per token, so a chunk is a block for
    each segment. More room is more chunks, or a further pool, and nothing that is stored ever gets another
    slot.

    Parameters
    ----------
    block : int
        T, slots per block.
    fixed : bool
        For steps that are compiled or captured: what depends on the sample lies in tensors of fixed address,
        not in shapes and Python numbers, and the pool is only ever replaced by a larger one. Room is made
        between steps only.

    Attributes
    ----------
    keys, values : torch.Tensor or None
        [slots, D].
    room : int
        Generated tokens that every segment has slots for.
    """

    def __init__(self, block: int, *, fixed: bool = False):
        self.block, self.fixed = block, fixed
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None
        self.room = 0
        self.counts = torch.zeros(0, dtype=torch.int64)  # [S] on the CPU: prompt entries
        self._slots, self._prompt_slots = self.counts, 0  # [S], those of the prompt, and their sum
        # where the store is not fixed: tokens generated in all and before this pool
        self.appended, self._begun_at = 0, 0
        self._blocks: Blocks | None = None  # in use
        self._full: list[Blocks] = []  # earlier pools
        self._indexes: dict[int, dict[str, torch.Tensor]] = {}  # by S: what a step reads besides the pool
        self._step = self._fixed_step if fixed else self._growing_step

    @property
    def segments(self) -> int:
        """S of the present sample."""
        return len(self.counts)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values that the present sample takes, unfilled slots included."""
        if not self.fixed:
            return self.allocated_bytes
        return 2 * self._slots_needed() * self.keys.shape[1] * self.keys.element_size()

    @property
    def allocated_bytes(self) -> int:
        """Bytes of keys and values held, for this and for later samples."""
        pools = [*(blocks.keys for blocks in self._full), *([] if self.keys is None else [self.keys])]
        return sum(2 * pool.numel() * pool.element_size() for pool in pools)

    @property
    def index(self) -> dict[str, torch.Tensor]:
        """``length``, ``prompt``, ``first``, ``capacity``, int64 [S] each, and what the attention needs."""
        return self._indexes[self.segments]

    def generated_count(self) -> torch.Tensor:
        """Tokens generated so far: int64 [] on the device."""
        return self.index["length"][0] - self.index["prompt"][0]

    def addresses(self) -> tuple[tuple[int, ...], ...]:
        """Where everything lies that a step touches; a captured step is valid as long as this stays equal."""
        tensors = (self.keys, self.values, *self.index.values())
        return tuple((tensor.data_ptr(), *tensor.shape) for tensor in tensors)

    def fill(self, key: torch.Tensor, value: torch.Tensor, kept: Kept, room: int) -> None:
        """Store a prompt in place of the last one.

        Parameters
        ----------
        key, value : torch.Tensor
            [B, K, N, D].
        kept : Kept
        room : int
            Generated tokens to make room for.
        """
        self.counts = kept.count.cpu().flatten()
        self._slots = self._whole_blocks(self.counts)
        self._prompt_slots = int(self._slots.sum())
        self.appended = self._begun_at = 0
        self._blocks, self._full = None, []
        self.room = self._whole_blocks(max(room, 1))
        if not fits(self.keys, key, self._slots_needed()):
            self.keys = self.values = None  # before larger ones are taken
            self._allocate(key)
        else:  # weights of zero do not silence what is not finite
            self.keys.zero_()
            self.values.zero_()
        self._write_prompt(key.detach(), value.detach(), kept.order)
        self._write_index(self.counts)

    def make_room(self, tokens: int) -> None:
        """Have slots for this many generated tokens in all; between steps only."""
        if tokens <= self.room:
            return
        length = self.index["length"].clone()
        self.room = self._whole_blocks(tokens)
        if len(self.keys) < self._slots_needed():
            filled = self.keys, self.values
            self._allocate(self.keys)
            for pool, old in zip((self.keys, self.values), filled, strict=True):
                pool[: len(old)] = old
        self._write_index(length)

    def set_length(self, length: torch.Tensor) -> None:
        """Go back to int64 [S] entries per segment; what lies behind them counts as never written."""
        self._write_index(length)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Add one generated token's [B, K, 1, D], then attention of [B, H, 1, D] over all -> [B, 1, H, D].

        A fixed store never waits for the device and changes nothing but tensors.
        """
        batch, heads, _, dim = query.shape
        if not self.fixed:
            if self.appended == self.room:
                self._grow()
            self.appended += 1
        rows = query.reshape(self.segments, -1, dim)
        key, value = key.detach().reshape(-1, dim), value.detach().reshape(-1, dim)
        return self._step(rows, key, value, scaling).view(batch, 1, heads, dim)

    def check_room(self) -> None:
        """Fail, on the device and without waiting for it, where the next token has no slot."""
        compat.assert_on_device(self.index["length"][0] < self.index["capacity"][0], NO_ROOM)

    def _grow(self) -> None:
        self._full.append(self._blocks)
        self._begun_at, self.room = self.appended, self.room + RESERVE
        shape, device = (self.segments * RESERVE, self.keys.shape[1]), self.keys.device
        self.keys, self.values = (self._new(shape, self.keys.dtype, device) for _ in range(2))
        owner = torch.arange(self.segments, device=device).repeat(RESERVE // self.block)
        bias = self._new((len(owner), self.block, 1), torch.float32, device).fill_(-torch.inf)
        self._indexes[self.segments] = {"owner": owner, "bias": bias}

    def _growing_step(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        chunk, slot = divmod(self.appended - 1 - self._begun_at, self.block)
        if slot == 0:  # views of the blocks in use, one more for each segment
            prompt = 0 if self._full else self._prompt_slots // self.block
            used, shape = prompt + (chunk + 1) * self.segments, (-1, self.block, self.keys.shape[1])
            pool = self.keys.view(shape), self.values.view(shape), self.index["bias"], self.index["owner"]
            self._blocks = Blocks(*(tensor[:used] for tensor in pool))
        keys, values, bias, _ = self._blocks
        keys[-self.segments :, slot], values[-self.segments :, slot] = key, value
        bias[-self.segments :, slot] = 0.0
        return ragged_attention(query, [*self._full, self._blocks], scaling)

    def _fixed_step(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        index, shape = self.index, (-1, self.block, self.keys.shape[1])
        slot = index["first"] + index["way"].index_select(0, index["generated"])
        self.keys.index_copy_(0, slot, key)
        self.values.index_copy_(0, slot, value)
        index["bias"].view(-1).index_fill_(0, slot, 0.0)
        index["generated"].add_(1)
        index["length"].add_(1)
        blocks = Blocks(self.keys.view(shape), self.values.view(shape), index["bias"], index["owner"])
        return shifted_attention(query, [blocks], scaling)

    def _whole_blocks(self, entries: Any) -> Any:
        return (entries + self.block - 1) // self.block * self.block

    def _slots_needed(self) -> int:
        return self._prompt_slots + self.segments * self.room

    def _allocate(self, like: torch.Tensor) -> None:
        blocks = self._slots_needed() // self.block
        shape = ((bucket(blocks) if self.fixed else blocks) * self.block, like.shape[-1])
        self._indexes.clear()
        self.keys, self.values = (self._new(shape, like.dtype, like.device) for _ in range(2))

    def _new(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if self.fixed:
            return static_zeros(shape, dtype, device)
        with writable():
            return torch.zeros(shape, dtype=dtype, device=device)

    def _write_prompt(self, key: torch.Tensor, value: torch.Tensor, order: torch.Tensor | None) -> None:
        kv_heads, length, dim = key.shape[1:]
        pools, counts = ((self.keys, key), (self.values, value)), self.counts
        if order is None:  # everything: no entry needs to be looked up
            for pool, source in pools:
                area = pool[: self._prompt_slots].view(self.segments, -1, dim)
                area[:, :length] = source.reshape(-1, length, dim)
            return
        before = counts.cumsum(0) - counts
        # the running number of a segment's first entry, and its first slot
        begin = torch.stack([before, self._slots.cumsum(0) - self._slots]).to(key.device)
        segment = torch.arange(self.segments).repeat_interleave(counts).to(key.device)
        begin = begin.index_select(1, segment)
        rank = torch.arange(len(segment), device=key.device).sub_(begin[0])
        position = order.reshape(self.segments, length)[segment, rank]
        slot = rank.add_(begin[1])
        row, head = (0, segment) if len(key) == 1 else (segment // kv_heads, segment % kv_heads)
        for pool, source in pools:
            pool.index_copy_(0, slot, source[row, head, position])

    def _write_index(self, length: torch.Tensor) -> None:
        """Describe the present sample to a step, in tensors that keep their places in a fixed store."""
        generated = length[:1].cpu() - self.counts[:1]
        described = self._blocks_of(int(generated))
        if self.fixed:
            step = torch.arange(len(self.keys) // self.segments)
            described |= {
                "length": length,
                "prompt": self.counts,
                "first": self._prompt_slots + torch.arange(self.segments) * self.block,
                "capacity": self.counts + self.room,
                # how far behind its first slot a segment's n-th generated entry lies
                "way": step // self.block * (self.segments * self.block) + step % self.block,
                "generated": generated,
            }
        held = self._indexes.setdefault(self.segments, {})
        for name, tensor in described.items():
            if name not in held or held[name].shape != tensor.shape:
                held[name] = self._new(tuple(tensor.shape), tensor.dtype, self.keys.device)
            held[name].copy_(tensor)

    def _blocks_of(self, generated: int) -> dict[str, torch.Tensor]:
        """Whose every block is, and which slots are used: int64 [M] and float32 [M, T, 1] as Blocks wants."""
        size, blocks = self.block, self._slots // self.block
        prompt, chunks = self._prompt_slots // size, self.room // size
        room = slice(prompt, prompt + chunks * self.segments)
        segment = torch.arange(self.segments)
        owner = torch.zeros(len(self.keys) // size, dtype=torch.int64)  # what nobody owns has no used slot
        owner[:prompt] = segment.repeat_interleave(blocks)
        owner[room] = segment.repeat(chunks)
        bias = torch.full((len(owner), size), -torch.inf)
        bias[:prompt] = 0.0
        # of a segment's last block, the slots behind its entries
        some = blocks > 0
        rest = torch.arange(size) >= (self.counts - (self._slots - size))[some, None]
        bias[(blocks.cumsum(0) - 1)[some]] = torch.where(rest, -torch.inf, 0.0)
        if generated:
            used = torch.arange(chunks * size).view(chunks, 1, size) < generated
            bias[room].view(chunks, -1, size).masked_fill_(used, 0.0)
        return {"owner": owner, "bias": bias.unsqueeze(-1)}


class RaggedArena(ArenaBase):
    """One fixed RaggedStore per layer; a pool grows when a sample needs more and never shrinks.

    Parameters
    ----------
    config : CompressionConfig
        Decides the block size.
    num_layers : int
    """

    def __init__(self, config: CompressionConfig, num_layers: int):
        super().__init__()
        block = block_size(config.budget) if config.evicts else FULL_BLOCK
        self.stores = [RaggedStore(block, fixed=True) for _ in range(num_layers)]

    def fill(self, layer: int, key: torch.Tensor, value: torch.Tensor, kept: Kept, room: int) -> None:
        """Store a layer of a prompt."""
        self.stores[layer].fill(key, value, kept, room)

    @property
    def room(self) -> int:
        """Generated tokens that there is room for."""
        return self.stores[0].room

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

    def addresses(self) -> tuple[object, ...]:
        """Where everything lies that a captured step is bound to."""
        return tuple(store.addresses() for store in self.stores)
