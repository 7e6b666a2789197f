"""Ragged decode attention of the store against float64 loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemm_eval.cache import ragged_store
from sparsemm_eval.cache.ragged_store import RaggedStore, block_size
from sparsemm_eval.methods.keep import Kept
from tests import reference

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def store_of(counts, dim, dtype, seed=0, scale=1.0, reserve=40, fixed=False):
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
    return filled(key, value, kept, reserve, fixed), segments


def kept_of(mask):
    """Entries marked in bool [B, K, N]."""
    return Kept(mask.float().argsort(dim=-1, descending=True, stable=True), mask.sum(-1), int(mask.sum()))


def filled(key, value, kept, room, fixed=False):
    store = RaggedStore(block_size(float(kept.sum(-1).double().mean())), fixed=fixed)
    store.fill(key, value, kept_of(kept), room)
    return store


def tokens(generator, segments, kv_heads, dim, dtype=torch.float32):
    """One more key and value for every segment [B, K, 1, D], and the segments with them."""
    batch = len(segments) // kv_heads
    key, value = (torch.randn(batch, kv_heads, 1, dim, generator=generator).to(dtype) for _ in range(2))
    longer = [
        (torch.cat([k, key[i // kv_heads, i % kv_heads]]), torch.cat([v, value[i // kv_heads, i % kv_heads]]))
        for i, (k, v) in enumerate(segments)
    ]
    return key, value, longer


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


@settings(max_examples=30)
@given(
    counts=st.lists(st.lists(st.integers(1, 90), min_size=2, max_size=2), min_size=1, max_size=3),
    group=st.sampled_from([1, 4, 6, 7, 8]),
    dim=st.sampled_from([16, 32, 64]),
    dtype=st.sampled_from(list(TOLERANCE)),
    steps=st.integers(1, 70),
    seed=st.integers(0, 99),
    fixed=st.booleans(),
)
def test_equals_loops(counts, group, dim, dtype, steps, seed, fixed):
    store, segments = store_of(counts, dim, dtype, seed, reserve=70 if fixed else 33, fixed=fixed)
    generator = torch.Generator().manual_seed(seed + 1)
    query = torch.randn(len(counts), 2 * group, 1, dim, generator=generator).to(dtype)
    for _ in range(steps):
        key, value, segments = tokens(generator, segments, 2, dim, dtype)
        ours = store.attend(query, key, value, dim**-0.5)
    assert ours.dtype == dtype
    assert relative_error(ours, truth_of(query, segments, 2, dim**-0.5)) < TOLERANCE[dtype]


@pytest.mark.parametrize("scale", [30.0, 300.0])
def test_large_scores_fall_back_to_the_shifted_softmax(scale):
    store, segments = store_of([[40, 7]], 16, torch.float32, scale=scale)
    query = torch.randn(1, 4, 1, 16, generator=torch.Generator().manual_seed(3)) * 10
    key, value, segments = tokens(torch.Generator().manual_seed(4), segments, 2, 16)
    ours = store.attend(query, key, value, 0.25)
    assert bool(torch.isfinite(ours).all())
    assert relative_error(ours, truth_of(query, segments, 2, 0.25)) < 1e-4


def test_scores_far_below_zero_lose_nothing():
    key = torch.full((1, 1, 6, 8), -40.0) + torch.arange(6.0)[None, None, :, None]
    value = torch.randn(1, 1, 6, 8)
    store = filled(key[:, :, :5], value[:, :, :5], torch.ones(1, 1, 5, dtype=torch.bool), 4)
    query = torch.full((1, 1, 1, 8), 5.0)
    ours = store.attend(query, key[:, :, 5:], value[:, :, 5:], 1.0)
    assert relative_error(ours, truth_of(query, [(key[0, 0], value[0, 0])], 1, 1.0)) < 1e-5


def test_append_moves_nothing_that_is_stored(monkeypatch):
    monkeypatch.setattr(ragged_store, "RESERVE", 32)
    store, segments = store_of([[10, 70]], 16, torch.float32, reserve=5)
    generator, query = torch.Generator().manual_seed(5), torch.randn(1, 2, 1, 16)
    addresses = []
    for _ in range(100):
        key, value, segments = tokens(generator, segments, 2, 16)
        ours = store.attend(query, key, value, 0.25)
        address = store.keys.data_ptr()
        if address not in addresses:
            addresses.append(address)
    assert len(addresses) == 4  # 32 tokens each
    assert [blocks.keys.data_ptr() for blocks in store._full] == addresses[:3]
    assert relative_error(ours, truth_of(query, segments, 2, 0.25)) < 1e-5


def test_a_fixed_store_gets_more_room_without_moving_an_entry():
    store, segments = store_of([[10, 70], [33, 1]], 16, torch.float32, reserve=20, fixed=True)
    generator, query = torch.Generator().manual_seed(6), torch.randn(2, 4, 1, 16)
    for step in range(90):
        if step == store.room:
            before = store.keys.clone()
            store.make_room(step + 40)
            assert torch.equal(store.keys[: len(before)], before)
        key, value, segments = tokens(generator, segments, 2, 16)
        ours = store.attend(query, key, value, 0.25)
    assert int(store.generated_count()) == 90
    assert relative_error(ours, truth_of(query, segments, 2, 0.25)) < 1e-5


def test_a_fixed_store_takes_another_sample_at_the_same_addresses():
    store, _ = store_of([[100, 300], [5, 60]], 16, torch.float32, reserve=40, fixed=True)
    addresses, generator = store.addresses(), torch.Generator().manual_seed(7)
    for counts in ([[1, 400], [7, 7]], [[33, 64], [95, 128]]):
        kept = torch.arange(400) < torch.tensor(counts)[..., None]
        key, value = (torch.randn(2, 2, 400, 16, generator=generator) for _ in range(2))
        store.fill(key, value, kept_of(kept), 30)
        segments = [
            (key[b, k, : counts[b][k]], value[b, k, : counts[b][k]]) for b in range(2) for k in range(2)
        ]
        query = torch.randn(2, 4, 1, 16, generator=generator)
        for _ in range(30):
            new_key, new_value, segments = tokens(generator, segments, 2, 16)
            ours = store.attend(query, new_key, new_value, 0.25)
        assert relative_error(ours, truth_of(query, segments, 2, 0.25)) < 1e-5
        assert store.addresses() == addresses


def test_storage_is_ragged_not_padded_to_the_longest():
    store, _ = store_of([[1000, 3, 3, 3]], 16, torch.float32, reserve=1)
    slots = 1024 + 3 * 32 + 4 * 32  # whole blocks, and one block per segment for what is generated
    assert store.nbytes == 2 * slots * 16 * 4
