"""Ragged decode attention against float64 loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemm_eval.cache import ragged_store
from sparsemm_eval.cache.ragged_store import RaggedStore
from tests import reference

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def store_of(counts, dim, dtype, seed=0, scale=1.0, reserve=40):
    """A store with counts [B][K] random entries and the entries themselves, per segment."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor(counts)
    length = int(counts.max()) + 3
    key = (torch.randn(*counts.shape, length, dim, generator=generator) * scale).to(dtype)
    value = torch.randn(*counts.shape, length, dim, generator=generator).to(dtype)
    kept = torch.rand(*counts.shape, length, generator=generator).argsort(-1).argsort(-1) < counts[..., None]
    segments = [
        (key[b, k][kept[b, k]], value[b, k][kept[b, k]])
        for b in range(counts.shape[0])
        for k in range(counts.shape[1])
    ]
    return RaggedStore(key, value, kept, reserve), segments


def relative_error(ours, truth):
    return float((ours.double() - truth).norm() / truth.norm())


def truth_of(query, segments, kv_heads, scaling):
    batch, heads = query.shape[:2]
    group = heads // kv_heads
    rows = [
        reference.attend(query[b, h, 0], *segments[b * kv_heads + h // group], scaling)
        for b in range(batch)
        for h in range(heads)
    ]
    return torch.stack(rows).view(batch, 1, heads, -1)


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.lists(st.integers(1, 90), min_size=2, max_size=2), min_size=1, max_size=3),
    group=st.sampled_from([1, 4, 6, 7, 8]),
    dim=st.sampled_from([16, 32, 64]),
    dtype=st.sampled_from(list(TOLERANCE)),
    appended=st.integers(0, 70),
    seed=st.integers(0, 99),
)
def test_equals_loops(counts, group, dim, dtype, appended, seed):
    store, segments = store_of(counts, dim, dtype, seed, reserve=33)
    batch = len(counts)
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(appended):
        key, value = (torch.randn(batch, 2, 1, dim, generator=generator).to(dtype) for _ in range(2))
        store.append(key, value)
        segments = [
            (torch.cat([k, key[i // 2, i % 2]]), torch.cat([v, value[i // 2, i % 2]]))
            for i, (k, v) in enumerate(segments)
        ]
    query = torch.randn(batch, 2 * group, 1, dim, generator=generator).to(dtype)
    ours = store.attend(query, dim**-0.5)
    assert ours.dtype == dtype
    assert relative_error(ours, truth_of(query, segments, 2, dim**-0.5)) < TOLERANCE[dtype]


@pytest.mark.parametrize("scale", [30.0, 300.0])
def test_large_scores_fall_back_to_the_shifted_softmax(scale):
    store, segments = store_of([[40, 7]], 16, torch.float32, scale=scale)
    query = torch.randn(1, 4, 1, 16, generator=torch.Generator().manual_seed(3)) * 10
    ours = store.attend(query, 0.25)
    assert bool(torch.isfinite(ours).all())
    assert relative_error(ours, truth_of(query, segments, 2, 0.25)) < 1e-4


def test_scores_far_below_zero_lose_nothing():
    key = torch.full((1, 1, 5, 8), -40.0) + torch.arange(5.0)[None, None, :, None]
    value = torch.randn(1, 1, 5, 8)
    store = RaggedStore(key, value, torch.ones(1, 1, 5, dtype=torch.bool), 4)
    query = torch.full((1, 1, 1, 8), 5.0)
    assert (
        relative_error(store.attend(query, 1.0), truth_of(query, [(key[0, 0], value[0, 0])], 1, 1.0)) < 1e-5
    )


def test_append_moves_nothing_that_is_stored(monkeypatch):
    monkeypatch.setattr(ragged_store, "RESERVE", 32)
    store, _ = store_of([[10, 70]], 16, torch.float32, reserve=5)
    address = store.slabs[0].keys.data_ptr()
    token = torch.randn(1, 2, 1, 16)
    for _ in range(100):
        store.append(token, token)
    assert store.slabs[0].keys.data_ptr() == address
    assert [slab.appended for slab in store.slabs] == [32, 32, 32, 4]


def test_storage_is_ragged_not_padded_to_the_longest():
    store, _ = store_of([[1000, 3, 3, 3]], 16, torch.float32, reserve=1)
    slots = 1024 + 3 * 32 + 4 * 32  # whole blocks, and one block per segment for what is generated
    assert store.nbytes == 2 * slots * 16 * 4
