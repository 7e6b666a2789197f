"""keep: every method against loops, batches against single prompts, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemm_eval import CompressionConfig, HeadScores
from sparsemm_eval.errors import ConfigError, HeadScoreError
from sparsemm_eval.methods import Method, PromptView, keep
from sparsemm_eval.methods.snapkv import uniform
from tests import reference
from tests.methods.matrix import (
    EVICTING,
    LOSSLESS,
    alone,
    config_of,
    pairs,
    positions,
    random_views,
    registered,
)


@pytest.mark.parametrize("method", LOSSLESS)
@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize(("heads", "kv_heads", "length"), [(4, 4, 60), (4, 2, 33), (7, 1, 50)])
def test_equals_loops(method, pooling, heads, kv_heads, length):
    table = HeadScores(torch.rand(3, heads, generator=torch.Generator().manual_seed(9)))
    config = config_of(
        method,
        table,
        budget=14,
        window=6,
        kernel_size=3,
        pooling=pooling,
        ratio=0.2,
        lag=8,
        fovea_diversity=2,
    )
    views = random_views(heads, kv_heads, [length])
    ours = [layer[0] for layer in positions(config, views)]
    truth = reference.kept_positions(config, views, table.table.tolist())
    assert [[len(head) for head in layer] for layer in ours] == [
        [len(head) for head in layer] for layer in truth
    ]
    if pooling == "avg":  # max pooling makes ties, which float32 and float64 break differently
        assert ours == truth


@settings(max_examples=300)
@given(
    pair=st.sampled_from(pairs()),
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    budget=st.integers(9, 40),
    surplus=st.sampled_from(["drop", "redistribute"]),
)
def test_a_padded_row_keeps_what_it_keeps_alone(pair, lengths, budget, surplus):
    table, (method, score) = HeadScores(torch.rand(3, 4) + 0.01), pair
    config = config_of(method, table, score=score, budget=budget, window=4, surplus=surplus, lag=6, future=16)
    views = random_views(4, 2, lengths, seed=budget)
    together = positions(config, views)
    width = max(lengths)
    for row, length in enumerate(lengths):
        start = width - length
        by_itself = positions(config, [alone(view, row, length) for view in views])
        for layer in range(3):
            assert [[p - start for p in head] for head in together[layer][row]] == by_itself[layer][0]


@settings(max_examples=60)
@given(
    method=st.sampled_from(EVICTING),
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    budget=st.integers(13, 40),
)
def test_protected_positions_are_kept_and_padding_is_not(method, lengths, budget):
    config = config_of(method, HeadScores(torch.rand(3, 4) + 0.01), budget=budget, window=8)
    for view, mask in zip(
        random_views(4, 2, lengths), keep(config, random_views(4, 2, lengths)), strict=True
    ):
        view = replace(view, config=config)
        protected = config.rule.protect(view) & view.everything
        assert mask[protected[:, None].expand_as(mask)].all()
        assert not mask[~view.everything[:, None].expand_as(mask)].any()


@pytest.mark.parametrize("method", LOSSLESS)
def test_a_prompt_within_the_budget_is_kept_whole(method):
    config = config_of(method, HeadScores(torch.ones(3, 4)), budget=40, window=32)
    for length in (1, 7, 33, 40):
        assert all(mask.all() for mask in keep(config, random_views(4, 2, [length])))


def test_the_earlier_of_two_equal_positions_wins():
    config = CompressionConfig("snapkv", budget=4, window=2, kernel_size=1)
    view = PromptView(torch.zeros(1, 1, 10, 4), torch.zeros(1, 1, 10, 4))
    assert positions(config, [view]) == [[[[0, 1, 8, 9]]]]


@pytest.mark.parametrize("method", LOSSLESS)
def test_is_pure(method):
    config = config_of(method, HeadScores(torch.rand(3, 4) + 0.1), budget=14, window=6)
    views = random_views(4, 2, [50, 30])
    before = [(view.query.clone(), view.key.clone(), view.valid.clone()) for view in views]
    first, second = keep(config, views), keep(config, views)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for view, tensors in zip(views, before, strict=True):
        assert all(map(torch.equal, (view.query, view.key, view.valid), tensors))
        assert view.config is None
        assert view.shared == {}


def test_another_score_under_the_same_budgets():
    table = HeadScores(torch.rand(3, 4, generator=torch.Generator().manual_seed(1)))
    views = random_views(4, 2, [60])
    own, drawn, again = (
        keep(config_of("sparsemm", table, budget=20, window=8, score=score, seed=seed), views)
        for score, seed in ((None, 0), ("random", 0), ("random", 1))
    )
    for a, b, c in zip(own, drawn, again, strict=True):
        assert torch.equal(a.sum(-1), b.sum(-1))
        assert b[..., -8:].all()
        assert not torch.equal(a, b)
        assert not torch.equal(b, c)
    # half of the positions of another half of the heads, as chance has it
    config = config_of("snapkv", budget=38, window=8, score="random")
    share = keep(config, random_views(4, 2, [68] * 40))[0][..., :60].float().mean(0)
    assert 0.35 < float(share.mean()) < 0.65


def test_head_scores_that_are_missing_or_of_another_model_are_refused():
    views = random_views(4, 2, [50])
    with pytest.raises(ConfigError, match="head_scores=None"):
        keep(CompressionConfig(budget=40), views)
    with pytest.raises(ConfigError, match="head_scores='tiny-reader'"):
        keep(CompressionConfig(budget=40, head_scores="tiny-reader"), views)
    with pytest.raises(HeadScoreError, match=r"\[5 layers, 4 query heads\]"):
        keep(CompressionConfig(budget=40, head_scores=HeadScores(torch.ones(5, 4))), views)


def test_a_method_that_breaks_its_contract_is_named():
    def wrong(view):
        return torch.zeros(view.batch, view.length)

    method = Method("wrong", "Wrong", score=wrong, allocate=uniform)
    message = r"score of method wrong.*\[B, K, N\], here \(1, 2, 50\)"
    with registered(method), pytest.raises(ConfigError, match=message):
        keep(CompressionConfig("wrong", budget=40), random_views(4, 2, [50]))
