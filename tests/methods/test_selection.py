import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemm_eval import CompressionConfig, HeadScores
from sparsemm_eval.config import METHODS
from sparsemm_eval.errors import ConfigError, HeadScoreError
from sparsemm_eval.methods.selection import kept_mask, kept_positions
from tests import reference


def inputs(heads, kv_heads, length, dim=8, seed=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, length, dim, generator=generator) * 2
    return query, torch.randn(batch, kv_heads, length, dim, generator=generator) * 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize(("heads", "kv_heads", "length"), [(4, 4, 60), (4, 2, 33), (7, 1, 50)])
def test_equals_loops(method, pooling, heads, kv_heads, length):
    scores = HeadScores(torch.rand(3, heads, generator=torch.Generator().manual_seed(9)))
    table = scores.table
    if method == "random":
        table = torch.rand(3, heads, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    config = CompressionConfig(
        method=method, budget=14, window=6, kernel_size=3, pooling=pooling, ratio=0.2, head_scores=scores
    )
    query, key = inputs(heads, kv_heads, length)
    for layer in range(3):
        ours = kept_positions(config, layer, 3, query, key)[0]
        truth = reference.kept_positions(config, layer, 3, query[0], key[0], table.tolist())
        assert [len(head) for head in ours] == [len(head) for head in truth]
        if pooling == "avg":  # max pooling makes ties, which float32 and float64 break differently
            assert [head.tolist() for head in ours] == truth


@settings(max_examples=40, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    budget=st.integers(9, 40),
)
def test_a_padded_row_keeps_what_it_keeps_alone(method, lengths, budget):
    config = CompressionConfig(
        method=method, budget=budget, window=8, head_scores=HeadScores(torch.rand(2, 4) + 0.01)
    )
    width = max(lengths)
    query, key = torch.randn(len(lengths), 4, width, 8) * 9, torch.randn(len(lengths), 2, width, 8) * 9
    valid = torch.stack([torch.arange(width) >= width - n for n in lengths])
    together = kept_positions(config, 0, 2, query, key, valid=valid)
    for row, length in enumerate(lengths):
        start = width - length
        alone = kept_positions(config, 0, 2, query[row : row + 1, :, start:], key[row : row + 1, :, start:])
        assert [(p - start).tolist() for p in together[row]] == [p.tolist() for p in alone[0]]


def test_the_window_is_always_kept():
    config = CompressionConfig(method="snapkv", budget=12, window=10)
    mask = kept_mask(config, 0, 2, *inputs(4, 2, 50))
    assert mask[..., -10:].all()
    assert mask.sum(-1).eq(12).all()


def test_a_prompt_shorter_than_the_window_is_kept():
    config = CompressionConfig(method="snapkv", budget=40, window=32)
    assert kept_mask(config, 0, 2, *inputs(4, 2, 7)).all()


def test_the_earlier_of_two_equal_positions_wins():
    config = CompressionConfig(method="snapkv", budget=4, window=2, kernel_size=1)
    query, key = torch.zeros(1, 1, 10, 4), torch.zeros(1, 1, 10, 4)
    assert kept_positions(config, 0, 1, query, key)[0][0].tolist() == [0, 1, 8, 9]


def test_is_pure():
    config = CompressionConfig(method="adakv", budget=14, window=6)
    query, key = inputs(4, 2, 50)
    before = query.clone(), key.clone()
    first, second = (kept_positions(config, 0, 3, query, key) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert torch.equal(query, before[0])
    assert torch.equal(key, before[1])


def test_sparsemm_without_scores_says_so():
    with pytest.raises(ConfigError, match="head_scores=None"):
        kept_positions(CompressionConfig(budget=40), 0, 2, *inputs(4, 2, 50))


def test_scores_of_another_model_are_refused():
    with pytest.raises(HeadScoreError, match=r"\[5 layers, 4 query heads\]"):
        kept_positions(CompressionConfig(budget=40), 0, 2, *inputs(4, 2, 50), HeadScores(torch.ones(5, 4)))
