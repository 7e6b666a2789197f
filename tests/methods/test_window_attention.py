import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemm_eval.methods.window_attention import smooth, window_importance
from tests import reference


def random_qk(heads, kv_heads, length, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, heads, length, dim, generator=generator) * 2
    key = torch.randn(1, kv_heads, length, dim, generator=generator) * 2
    return query, key


@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("gqa", ["mean", "max"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 1), (7, 1)])
def test_equals_loops(heads, kv_heads, gqa, pooling):
    query, key = random_qk(heads, kv_heads, 23)
    ours = window_importance(query, key, window=5, kernel_size=3, pooling=pooling, gqa=gqa)[0]
    truth = reference.importance(query[0], key[0], 5, 3, pooling, gqa)
    torch.testing.assert_close(ours.double(), torch.tensor(truth, dtype=torch.float64), rtol=1e-4, atol=1e-6)


@settings(max_examples=25)
@given(
    pads=st.integers(0, 9),
    window=st.integers(1, 6),
    kernel=st.sampled_from([1, 3, 5]),
    pooling=st.sampled_from(["avg", "max"]),
)
def test_left_padding_changes_nothing(pads, window, kernel, pooling):
    query, key = random_qk(4, 2, 20)
    knobs = {"window": window, "kernel_size": kernel, "pooling": pooling}
    alone = window_importance(query, key, **knobs)
    junk = torch.full((1, 4, pads, 8), 30.0)
    padded_query = torch.cat([junk, query], dim=2)
    padded_key = torch.cat([junk[:, :2], key], dim=2)
    valid = torch.arange(20 + pads)[None] >= pads
    padded = window_importance(padded_query, padded_key, valid=valid, **knobs)
    torch.testing.assert_close(padded[..., pads:], alone)
    spill = kernel // 2  # pooling carries real importance into the padding, which selection ignores
    assert padded[..., : max(pads - spill, 0)].eq(0).all()


def test_sums_to_the_attention_left_of_the_window():
    query, key = random_qk(2, 2, 30)
    unsmoothed = window_importance(query, key, window=1, kernel_size=1)[0]
    probabilities = (query[0, :, -1:] @ key[0].transpose(1, 2) * 8**-0.5).softmax(-1)[:, 0, :-1]
    torch.testing.assert_close(unsmoothed, probabilities)


def test_pooling_of_an_empty_prefix_is_empty():
    assert smooth(torch.zeros(1, 2, 0), 5, "avg").shape == (1, 2, 0)


def test_half_precision_softmax_is_float32():
    query, key = random_qk(2, 2, 30)
    half = window_importance(query.bfloat16(), key.bfloat16(), window=4, kernel_size=1)
    assert half.dtype == torch.float32
    torch.testing.assert_close(
        half, window_importance(query, key, window=4, kernel_size=1), rtol=0.3, atol=0.02
    )
