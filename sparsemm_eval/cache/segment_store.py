"""Where the entries of a batch lie for the Triton kernel: one run of slots per segment, found by address.

A segment is one (row, KV head) pair. Its prompt entries lie at the beginning of its run, generated tokens
behind them. What a decode step needs to know of a sample lies in tensors that stay where they are, the pools'
addresses included: pools are replaced by larger ones without a new capture or compilation.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch

from sparsemm_eval import compat
from sparsemm_eval.cache.arena import NO_ROOM, ArenaBase, fits, static_zeros, writable
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.kernels import work_list
from sparsemm_eval.kernels.dispatch import triton_operators
from sparsemm_eval.kernels.ragged_triton import store_prompt
from sparsemm_eval.methods.keep import Kept

RESERVE = 256  # slots for generated tokens that an eager cache takes at a time
LOOK_AHEAD = 128  # generated tokens that the work list expects

#: All numbers of a sample size: int64 and int32 in one tensor each, and every layer's views of them.
Held: TypeAlias = tuple[torch.Tensor, torch.Tensor, list[tuple[torch.Tensor, ...]]]


class SegmentStore:
    """One layer's pool and where a decode step finds it.

    Attributes
    ----------
    keys, values : torch.Tensor or None
        [slots, D].
    room : int
        Generated tokens that every segment has slots for.
    segments, items, ranges, length, prompt, pool : torch.Tensor
        What ``ragged_op.ragged_decode_step`` reads, of fixed address for a number of segments; ``prompt`` is
        int64 [S], entries of the prompt.
    """

    def __init__(self, arena: SegmentArena, layer: int):
        self.arena, self.layer = arena, layer
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None
        self.room = self.asked = 0
        self.most = 0  # prompt entries at most
        self.kept: torch.Tensor | None = None  # int64 [S], where it is known: prompt entries
        self.segments = self.items = self.ranges = self.length = self.prompt = self.pool = None
        self._operator: Any = triton_operators().ragged_decode_step

    @property
    def counts(self) -> torch.Tensor:
        """int64 [S] on the CPU: prompt entries; known once all layers have theirs."""
        return torch.from_numpy(self.arena.counts[self.layer])

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values that the present sample takes, unfilled slots included."""
        entries = self.most if self.arena.counts is None else int(self.arena.counts[self.layer].sum())
        slots = entries + len(self.kept) * self.asked
        return 2 * slots * self.keys.shape[1] * self.keys.element_size()

    @property
    def allocated_bytes(self) -> int:
        """Bytes of keys and values held, for this and for later samples."""
        return 0 if self.keys is None else 2 * self.keys.numel() * self.keys.element_size()

    def generated_count(self) -> torch.Tensor:
        """Tokens generated so far: int64 [] on the device."""
        return self.length[0] - self.prompt[0]

    def check_room(self) -> None:
        """Fail, on the device and without waiting for it, where the next token has no slot."""
        compat.assert_on_device(self.length[0] < self.segments[1, 0], NO_ROOM)

    def fill(self, key: torch.Tensor, value: torch.Tensor, kept: Kept, room: int) -> None:
        """Store a prompt in place of the last one; nothing waits for the device.

        Parameters
        ----------
        key, value : torch.Tensor
            [B, K, N, D].
        kept : Kept
        room : int
            Generated tokens to make room for; there is more where the pool of the last sample has more.
        """
        batch, kv_heads, length, _ = key.shape
        count, self.most, self.asked = batch * kv_heads, kept.most, room
        slots = kept.most + count * room
        if not fits(self.keys, key, slots):
            self.keys = self.values = None  # before larger ones are taken
            self._allocate(key, slots)
        self.room = (len(self.keys) - kept.most) // count
        self.kept = kept.count.flatten()
        if kept.order is None:  # everything, one segment after the other
            for pool, source in (self.keys, key.detach()), (self.values, value.detach()):
                area = pool[: count * (length + self.room)].view(batch, kv_heads, -1, pool.shape[1])
                area[:, :, :length] = source
            return
        longest = int(self.kept.max()) if self.kept.device.type == "cpu" else min(kept.most, length)
        places = torch.stack([first_slots(self.kept, self.room), self.kept])
        places = places.to(key.device, non_blocking=True)
        store_prompt(key.detach(), value.detach(), kept.order, places, self.keys, self.values, longest)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Add one generated token's [B, K, 1, D], then attention of [B, H, 1, D] over all -> [B, 1, H, D]."""
        batch, heads, _, dim = query.shape
        rows = query.reshape(len(self.length), -1, dim)
        where = self.pool, self.segments, self.items, self.ranges, self.length
        output = self._operator(rows, key.detach(), value.detach(), *where, scaling)
        return output.view(batch, 1, heads, dim)

    def move(self, lengths: np.ndarray, room: int) -> None:
        """Put all entries, int64 [S] of them, into a pool with this much room."""
        old, first = (self.keys, self.values), first_slots(self.counts, self.room)
        self._allocate(self.keys, int(self.arena.counts[self.layer].sum()) + len(lengths) * room)
        device, entries = self.keys.device, int(lengths.sum())
        length = torch.from_numpy(lengths)
        before = length.cumsum(0) - length
        shifts = torch.stack([first - before, first_slots(self.counts, room) - before]).to(device)
        segment = torch.arange(len(lengths), device=device)
        segment = segment.repeat_interleave(length.to(device), output_size=entries)
        rank = torch.arange(entries, device=device)
        source, target = (rank + shift[segment] for shift in shifts)
        for pool, filled in zip((self.keys, self.values), old, strict=True):
            pool[target] = filled[source]
        self.room = self.asked = room

    def _allocate(self, like: torch.Tensor, slots: int) -> None:
        with writable():
            shape = slots, like.shape[-1]
            self.keys, self.values = (
                torch.empty(shape, dtype=like.dtype, device=like.device) for _ in range(2)
            )


def first_slots(counts: torch.Tensor, room: int) -> torch.Tensor:
    """Where segments begin that have so many prompt entries, int64 [S], and equal room."""
    return counts.cumsum(0) - counts + torch.arange(len(counts), device=counts.device) * room


class SegmentArena(ArenaBase):
    """The stores of all layers, with what their steps read in common tensors, one set per number of segments.

    Attributes
    ----------
    counts : np.ndarray or None
        int64 [L, S], prompt entries; None while a prompt is being stored.
    """

    def __init__(self, num_layers: int):
        super().__init__()
        self.stores = [SegmentStore(self, layer) for layer in range(num_layers)]
        self.counts: np.ndarray | None = None
        self._held: dict[tuple[int, torch.device], Held] = {}

    def fill(self, layer: int, key: torch.Tensor, value: torch.Tensor, kept: Kept, room: int) -> None:
        """Store a layer of a prompt; the last one reads the number of entries of all, at once."""
        self.counts = None
        self.stores[layer].fill(key, value, kept, room)
        if layer + 1 < len(self.stores):
            return
        self.counts = torch.stack([store.kept for store in self.stores]).cpu().numpy()
        for number, store in enumerate(self.stores):
            if self.counts[number].sum() > store.most:
                remedy = f"at most {store.most} entries, in layer {number}"
                raise ConfigError("allocate", int(self.counts[number].sum()), remedy)
        self._describe(self.counts)

    @property
    def room(self) -> int:
        """Generated tokens that there is room for."""
        return min(store.room for store in self.stores)

    def make_room(self, tokens: int) -> None:
        """Have slots for this many generated tokens in every layer; between steps only."""
        lengths = self.length.cpu().numpy()
        for store, length in zip(self.stores, lengths, strict=True):
            if store.room < tokens:
                store.move(length, tokens)
        self._describe(lengths)

    @property
    def length(self) -> torch.Tensor:
        """int64 [L, S] on the device: entries of every segment."""
        layers, segments = self.counts.shape
        return self._held[self._key][0][: layers * 4 * segments].view(layers, 4, segments)[:, 2]

    def lengths(self) -> torch.Tensor:
        """Entries of every segment: where ``go_back`` can return to."""
        return self.length.clone()

    def go_back(self, lengths: torch.Tensor) -> None:
        """Forget every entry that came after."""
        self.length.copy_(lengths)

    def addresses(self) -> tuple[object, ...]:
        """Where everything lies that a captured step is bound to; the pools are not."""
        return tuple(tensor.data_ptr() for tensor in self._held[self._key][:2])

    @property
    def _key(self) -> tuple[int, torch.device]:
        return self.counts.shape[1], self.stores[0].keys.device

    def _describe(self, lengths: np.ndarray) -> None:
        """Tell the steps of the present sample where everything lies, in two copies."""
        counts, stores = self.counts, self.stores
        rooms = np.array([[store.room] for store in stores])
        first = np.stack([first_slots(store.counts, store.room).numpy() for store in stores])
        capacity = counts + rooms
        programs = work_list.programs_of(stores[0].keys.device)
        lists = work_list.plan(np.minimum(lengths + LOOK_AHEAD, capacity), capacity, programs)
        pools = np.array([[store.keys.data_ptr(), store.values.data_ptr()] for store in stores])
        facts = np.stack([first, capacity, lengths, counts], axis=1)
        if self._key not in self._held:
            self._held[self._key] = self._hold(facts.shape[2], lists[0].shape[1])
        longs, ints, views = self._held[self._key]
        longs.copy_(torch.from_numpy(np.concatenate([facts.ravel(), pools.ravel()])), non_blocking=True)
        ints.copy_(torch.from_numpy(np.concatenate([part.ravel() for part in lists])), non_blocking=True)
        for store, own in zip(stores, views, strict=True):
            store.segments, store.length, store.prompt, store.pool, store.items, store.ranges = own

    def _hold(self, segments: int, width: int) -> Held:
        """Tensors for samples of S segments and work lists of W items, which stay where they are."""
        layers, device = len(self.stores), self.stores[0].keys.device
        longs = static_zeros((layers * (4 * segments + 2),), torch.int64, device)
        ints = static_zeros((layers * (width * 4 + segments * 2),), torch.int32, device)
        facts, pools = longs.split([layers * 4 * segments, layers * 2])
        items, ranges = ints.split([layers * width * 4, layers * segments * 2])
        parts = zip(
            facts.view(layers, 4, segments),
            pools.view(layers, 2),
            items.view(layers, width, 4),
            ranges.view(layers, segments, 2),
            strict=True,
        )
        views = [(fact[:2], fact[2], fact[3], pool, item, span) for fact, pool, item, span in parts]
        for view in (tensor for own in views for tensor in own):
            compat.mark_static_address(view)
        return longs, ints, views
