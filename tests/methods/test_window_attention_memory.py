"""The importance pass holds a bounded part of the window's attention at a time; which does not matter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemm_eval.bench.clock import traced_peak_bytes
from sparsemm_eval.methods import window_attention
from sparsemm_eval.methods.window_attention import window_importance

VICUNA, QWEN = (32, 32), (28, 4)  # query heads, KV heads of the 7B models
LIMIT = window_attention.TEMPORARY_BYTES["cpu"]
EVERYTHING = 1 << 40


def projections(heads, kv_heads, length, dim, dtype, batch=1, seed=0):
    """Query and key as a model makes them: views of [B, N, heads, D]."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, length, n, dim, generator=generator).to(dtype).transpose(1, 2)
        for n in (heads, kv_heads)
    )


@pytest.mark.parametrize(("heads", "kv_heads"), [VICUNA, QWEN])
def test_temporary_memory_is_bounded(heads, kv_heads):
    length, window = 8192, 32
    query, key = projections(heads, kv_heads, length, 128, torch.bfloat16)
    query = query[:, :, -window:]

    def run(limit=LIMIT, positions=length):
        window_importance(query, key[:, :, :positions], window=window, kernel_size=5, temporary_bytes=limit)

    run(positions=64)  # what libraries set up once is not counted
    results = 4 * (heads + 2 * kv_heads) * length  # per query head, per KV head, smoothed
    scratch = key[0, 0].numel() * key.element_size()  # CPU libraries may lay a matrix out anew
    assert traced_peak_bytes(run) <= LIMIT + results + scratch
    assert traced_peak_bytes(lambda: run(EVERYTHING)) > 2 * LIMIT


@settings(max_examples=30)
@given(
    groups=st.sampled_from([1, 4, 7]),
    kv_heads=st.integers(1, 3),
    length=st.integers(9, 90),
    batch=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    gqa=st.sampled_from(["mean", "max"]),
    padded=st.booleans(),
    limit=st.sampled_from([0, 1 << 12, 1 << 14, LIMIT]),
)
def test_chunks_change_no_bit(groups, kv_heads, length, batch, dtype, gqa, padded, limit):
    query, key = projections(groups * kv_heads, kv_heads, length, 16, dtype, batch, seed=length)
    valid = torch.arange(length) >= torch.arange(batch)[:, None] * 3 if padded else None
    knobs = {"window": 8, "kernel_size": 5, "gqa": gqa, "valid": valid}
    whole = window_importance(query, key, temporary_bytes=EVERYTHING, **knobs)
    assert window_importance(query, key, temporary_bytes=limit, **knobs).equal(whole)


def test_rows_of_a_batch_equal_their_own_runs():
    query, key = projections(4, 2, 50, 16, torch.float32, batch=3)
    together = window_importance(query, key, window=8, kernel_size=5)
    for row in range(3):
        alone = window_importance(query[row : row + 1], key[row : row + 1], window=8, kernel_size=5)
        assert alone.equal(together[row : row + 1])


def test_inputs_are_left_as_they_were():
    query, key = projections(2, 2, 30, 8, torch.float32)
    before = query.clone(), key.clone()
    window_importance(query, key, window=8, kernel_size=5, valid=torch.arange(30)[None] > 3)
    assert query.equal(before[0])
    assert key.equal(before[1])


def test_entries_are_chosen_without_a_gradient():
    query, key = (tensor.requires_grad_() for tensor in projections(2, 2, 30, 8, torch.float32))
    assert not window_importance(query, key, window=8, kernel_size=5).requires_grad
