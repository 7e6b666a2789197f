"""Random ragged pools whose unused slots hold NaN, and their attention in float64."""

from __future__ import annotations

import torch

from sparsemm_eval.kernels.work_list import plan

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
BLOCK = 64


class Pool:
    """Segments of ``counts`` entries with room for ``room`` more, in shuffled order with gaps between."""

    def __init__(self, counts, dim, dtype, device, *, seed=0, room=64, slots=None, scale=1.0):
        self.generator = torch.Generator().manual_seed(seed)
        self.dim, self.dtype, self.device = dim, dtype, device
        self.length = torch.tensor(counts)
        self.capacity = (self.length + room + BLOCK - 1) // BLOCK * BLOCK
        order = torch.randperm(len(counts), generator=self.generator)
        taken = self.capacity[order] + BLOCK
        self.offset = torch.empty_like(self.capacity)
        self.offset[order] = taken.cumsum(0) - taken + 3
        self.slots = int(taken.sum()) + 7 if slots is None else slots
        self.segments = [[self.random(n, dim) * scale, self.random(n, dim)] for n in counts]
        self.keys, self.values = (torch.full((self.slots, dim), torch.nan, dtype=dtype) for _ in range(2))
        for start, (keys, values) in zip(self.offset.tolist(), self.segments, strict=True):
            self.keys[start : start + len(keys)] = keys
            self.values[start : start + len(keys)] = values
        for name in ("length", "capacity", "offset", "keys", "values"):
            setattr(self, name, getattr(self, name).to(device))

    def random(self, *shape):
        """Fresh numbers in the pool's dtype, on the CPU."""
        return torch.randn(*shape, generator=self.generator).to(self.dtype)

    def query(self, group):
        return self.random(len(self.segments), group, self.dim)

    @property
    def place(self):
        """The pool's address, and where its segments lie: int64 [2] and [2, S]."""
        pool = torch.tensor([self.keys.data_ptr(), self.values.data_ptr()], device=self.device)
        return pool, torch.stack([self.offset, self.capacity])

    def work(self, programs=16):
        lengths, capacity = (tensor.cpu().numpy()[None] for tensor in (self.length, self.capacity))
        items, ranges = plan(lengths, capacity, programs)
        return tuple(torch.from_numpy(part[0]).to(self.device) for part in (items, ranges))

    def new_entries(self):
        """A token's key and value [S, D], also appended to the reference segments."""
        key, value = (self.random(len(self.segments), self.dim) for _ in range(2))
        for s, pair in enumerate(self.segments):
            if len(pair[0]) < self.capacity[s]:
                pair[0], pair[1] = (
                    torch.cat([pair[0], key[s : s + 1]]),
                    torch.cat([pair[1], value[s : s + 1]]),
                )
        return key.to(self.device), value.to(self.device)

    def truth(self, query, scaling):
        """float64 [S, G, D]."""
        outputs = []
        for rows, (keys, values) in zip(query.double(), self.segments, strict=True):
            scores = rows @ keys.double().T * scaling
            outputs.append(scores.softmax(-1) @ values.double())
        return torch.stack(outputs)


def relative_error(ours, truth):
    """Norm of the difference over the norm; the worst of the segments that have entries."""
    ours, truth = ours.cpu().double().flatten(1), truth.flatten(1)
    norm = truth.norm(dim=1)
    assert bool(ours[norm == 0].eq(0).all())
    errors = ((ours - truth).norm(dim=1) / norm)[norm > 0]
    return float(errors.max()) if errors.numel() else 0.0
