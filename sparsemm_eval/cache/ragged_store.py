"""Where the entries of a compressed layer live: blocks of ragged segments, appended to in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparsemm_eval.kernels.ragged_torch import Blocks, ragged_attention

RESERVE = 256  # generated tokens a new slab has room for, at most


@dataclass
class Slab:
    """One allocation: prompt blocks, then blocks for generated tokens, one per segment and T tokens.

    All segments grow by one entry per token, so the generated part is regular: chunk j occupies the
    ``segments`` blocks from ``prompt_blocks + j * segments``.
    """

    keys: torch.Tensor  # [M, T, D]
    values: torch.Tensor  # [M, T, D]
    bias: torch.Tensor  # [M, T, 1] float32: 0 used, -inf unused
    segment: torch.Tensor  # int64 [M]
    prompt_blocks: int
    segments: int
    appended: int = 0
    in_use: Blocks | None = None

    @property
    def block(self) -> int:
        """T, slots per block."""
        return self.keys.shape[1]

    @property
    def room(self) -> int:
        """Generated tokens this slab can still take."""
        chunks = (self.keys.shape[0] - self.prompt_blocks) // self.segments
        return chunks * self.block - self.appended

    @property
    def nbytes(self) -> int:
        """Allocated bytes of keys and values."""
        return 2 * self.keys.numel() * self.keys.element_size()

    def append(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Write one entry per segment, [segments, D] each."""
        chunk, slot = divmod(self.appended, self.block)
        start = self.prompt_blocks + chunk * self.segments
        rows = slice(start, start + self.segments)
        if slot == 0:
            self.in_use = self._blocks(rows.stop)
        self.keys[rows, slot] = key
        self.values[rows, slot] = value
        self.bias[rows, slot] = 0.0
        self.appended += 1

    def blocks(self) -> Blocks:
        """Views of the blocks in use, made anew only when a block is added."""
        if self.in_use is None:
            self.in_use = self._blocks(self.prompt_blocks)
        return self.in_use

    def _blocks(self, used: int) -> Blocks:
        return Blocks(self.keys[:used], self.values[:used], self.bias[:used], self.segment[:used])


def block_size(mean_entries: float) -> int:
    """Slots per block: larger is faster, and a segment wastes half a block on average."""
    return 64 if mean_entries >= 512 else 32


class RaggedStore:
    """Keys and values of all segments of a layer; a segment is one (row, KV head) pair.

    Parameters
    ----------
    key, value : torch.Tensor
        [B, K, N, D] of the whole prompt.
    kept : torch.Tensor
        bool [B, K, N]: the entries to store.
    reserve : int
        Tokens that will probably be generated; more are taken into further slabs without copying.
    """

    def __init__(self, key: torch.Tensor, value: torch.Tensor, kept: torch.Tensor, reserve: int):
        self.batch, self.kv_heads = key.shape[:2]
        self.counts = kept.sum(-1).cpu()  # [B, K] prompt entries
        self.block = block_size(float(self.counts.double().mean()))
        first = self._slab(key, self._block_counts(), reserve)
        self._fill(first, key, value, kept)
        self.slabs = [first]

    def _block_counts(self) -> torch.Tensor:
        return (self.counts.flatten() + self.block - 1) // self.block

    def _slab(self, like: torch.Tensor, block_counts: torch.Tensor, reserve: int) -> Slab:
        segments = self.batch * self.kv_heads
        chunks = max(1, -(-min(reserve, RESERVE) // self.block))
        prompt_blocks = int(block_counts.sum())
        ids = torch.arange(segments)
        segment = torch.cat([ids.repeat_interleave(block_counts), ids.repeat(chunks)]).to(like.device)
        shape = (len(segment), self.block, like.shape[-1])
        # unused slots must be finite: -inf plus NaN would be NaN
        return Slab(
            keys=like.new_zeros(shape),
            values=like.new_zeros(shape),
            bias=torch.full((len(segment), self.block, 1), -torch.inf, device=like.device),
            segment=segment,
            prompt_blocks=prompt_blocks,
            segments=segments,
        )

    def _fill(self, slab: Slab, key: torch.Tensor, value: torch.Tensor, kept: torch.Tensor) -> None:
        row, head, position = kept.nonzero(as_tuple=True)  # sorted by row, head, position
        counts, blocks = self.counts.flatten(), self._block_counts()
        first_slot = (blocks.cumsum(0) - blocks) * self.block
        first_entry = counts.cumsum(0) - counts
        jump = (first_slot - first_entry).to(key.device)  # slot of an entry minus its running number
        slot = torch.arange(len(position), device=key.device) + jump[row * self.kv_heads + head]
        slab.keys.view(-1, key.shape[-1])[slot] = key[row, head, position]
        slab.values.view(-1, key.shape[-1])[slot] = value[row, head, position]
        slab.bias.view(-1)[slot] = 0.0

    @property
    def nbytes(self) -> int:
        """Allocated bytes of keys and values, unfilled slots included."""
        return sum(slab.nbytes for slab in self.slabs)

    def append(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Add one generated token's [B, K, 1, D]: O(KV heads), nothing stored is moved."""
        if self.slabs[-1].room == 0:
            none = torch.zeros(self.batch * self.kv_heads, dtype=torch.int64)
            self.slabs.append(self._slab(key, none, RESERVE))
        self.slabs[-1].append(key.flatten(0, 2), value.flatten(0, 2))

    def attend(self, query: torch.Tensor, scaling: float) -> torch.Tensor:
        """Attention of [B, H, 1, D] over all entries -> [B, 1, H, D]."""
        batch, heads, _, dim = query.shape
        rows = query.reshape(batch * self.kv_heads, heads // self.kv_heads, dim)
        output = ragged_attention(rows, [slab.blocks() for slab in self.slabs], scaling)
        return output.view(batch, 1, heads, dim)
