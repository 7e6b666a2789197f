"""Every allocator: totals, floors, monotony in the budget, never more than the prompt, symmetry in heads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemm_eval import CompressionConfig, HeadScores
from sparsemm_eval.config import METHODS, SURPLUS_RULES
from sparsemm_eval.methods.allocation import ALLOCATORS, AllocationInput, allocate
from tests import reference

LAYERS, KV_HEADS, GROUP = 4, 3, 2


def scores_of(seed, layers=LAYERS, heads=KV_HEADS * GROUP):
    generator = torch.Generator().manual_seed(seed)
    return HeadScores(torch.rand(layers, heads, generator=generator, dtype=torch.float64) ** 6)


def data_of(config, prompt, layer=0, seed=0, layers=LAYERS):
    generator = torch.Generator().manual_seed(100 * seed + layer)
    prefix = max(prompt - config.window, 0)
    importance = torch.rand(1, KV_HEADS, prefix, generator=generator) ** 4
    importance /= importance.sum(-1, keepdim=True).clamp_min(1e-9)
    lengths = torch.tensor([prompt])
    return AllocationInput(config, layer, layers, KV_HEADS, KV_HEADS * GROUP, lengths, importance)


def all_layers(config, prompt, seed=0):
    """int64 [L, K]."""
    return torch.stack([allocate(data_of(config, prompt, i, seed))[0] for i in range(LAYERS)])


@st.composite
def situations(draw):
    window = draw(st.integers(1, 16))
    config = CompressionConfig(
        method=draw(st.sampled_from(METHODS)),
        window=window,
        budget=draw(st.integers(window + 1, 120)),
        ratio=draw(st.floats(0, 1)),
        surplus=draw(st.sampled_from(SURPLUS_RULES)),
        adakv_floor=draw(st.floats(0, 1)),
        pyramid_beta=draw(st.integers(1, 40)),
        seed=draw(st.integers(0, 5)),
        head_scores=scores_of(draw(st.integers(0, 5))),
    )
    return config, draw(st.integers(1, 200)), draw(st.integers(0, 3))


@settings(max_examples=150, deadline=None)
@given(situations())
def test_never_more_than_the_prompt_and_never_less_than_the_window(situation):
    config, prompt, seed = situation
    kept = all_layers(config, prompt, seed)
    assert int(kept.max()) <= prompt
    assert int(kept.min()) >= min(config.window, prompt)


@settings(max_examples=100, deadline=None)
@given(situations())
def test_a_prompt_within_the_budget_is_left_whole(situation):
    config, prompt, seed = situation
    if config.method == "fullkv" or prompt <= config.budget:
        assert all_layers(config, prompt, seed).eq(prompt).all()


@settings(max_examples=150, deadline=None)
@given(situations())
def test_totals(situation):
    config, prompt, seed = situation
    if config.method == "fullkv" or prompt <= config.budget:
        return
    total = int(all_layers(config, prompt, seed).sum())
    nominal = config.budget * LAYERS * KV_HEADS
    if config.method == "snapkv" or config.surplus == "redistribute":
        # pyramidkv shares whole entries among layers, so every head of a layer gets the same
        slack = LAYERS * KV_HEADS if config.method == "pyramidkv" else 0
        assert nominal - slack <= total <= nominal
    elif config.method == "pyramidkv":
        assert total <= nominal + KV_HEADS * LAYERS * LAYERS
    else:  # rounding per head
        assert total <= nominal + LAYERS * KV_HEADS


@settings(max_examples=150, deadline=None)
@given(situations())
def test_floors(situation):
    config, prompt, seed = situation
    if config.method == "fullkv" or prompt <= config.budget:
        return
    base = config.budget - config.window
    kept = all_layers(config, prompt, seed)
    if config.method in ("sparsemm", "random"):
        assert int(kept.min()) >= min(config.window + int(config.ratio * base), prompt)
    if config.method == "adakv":
        assert int(kept.min()) >= min(config.window + int(config.adakv_floor * base), prompt)


@settings(max_examples=150, deadline=None)
@given(situations())
def test_monotonic_in_the_budget(situation):
    config, prompt, seed = situation
    if config.method == "fullkv":
        return
    less = all_layers(config, prompt, seed)
    more = all_layers(config.replace(budget=config.budget + 1), prompt, seed)
    assert int(more.sum()) >= int(less.sum()) - rounding_slack(config)
    # AdaKV lets heads compete and PyramidKV moves budget between layers: one head may lose what another wins
    if config.method in ("snapkv", "sparsemm", "random"):
        allowed = 1 if config.surplus == "redistribute" else 0
        assert bool((more >= less - allowed).all())


def rounding_slack(config):
    """Entries that rounding may take away although the budget grew."""
    if config.method == "adakv" and config.surplus == "drop":
        return LAYERS * KV_HEADS
    if config.method == "pyramidkv":
        return LAYERS * LAYERS * KV_HEADS
    return 0


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(KV_HEADS)), st.sampled_from(["adakv", "snapkv", "pyramidkv"]))
def test_heads_are_treated_alike(order, method):
    config = CompressionConfig(method=method, budget=40, window=8)
    data = data_of(config, 150, layer=1)
    shuffled = AllocationInput(
        config, 1, LAYERS, KV_HEADS, KV_HEADS * GROUP, data.prompt_lengths, data.importance[:, order]
    )
    assert allocate(shuffled)[0].tolist() == allocate(data)[0, order].tolist()


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(LAYERS * KV_HEADS)), st.sampled_from(SURPLUS_RULES))
def test_sparsemm_budgets_follow_their_scores(order, surplus):
    table = scores_of(3, LAYERS, KV_HEADS).table
    shuffled = table.flatten()[order].view_as(table)
    config = CompressionConfig(budget=40, window=8, surplus=surplus)

    def kept(scores):
        with_scores = config.replace(head_scores=HeadScores(scores))
        rows = []
        for layer in range(LAYERS):
            data = data_of(with_scores, 150, layer)
            rows.append(allocate(AllocationInput(**{**vars(data), "query_heads": KV_HEADS}))[0])
        return torch.stack(rows).flatten()

    difference = kept(shuffled) - kept(table)[order]
    assert int(difference.abs().max()) <= (1 if surplus == "redistribute" else 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prompt", [5, 30, 41, 90, 400])
def test_equals_loops(method, prompt):
    scores = scores_of(1)
    config = CompressionConfig(method=method, budget=40, window=8, ratio=0.25, head_scores=scores, seed=2)
    table = scores.table
    if method == "random":
        table = torch.rand(
            LAYERS, KV_HEADS * GROUP, generator=torch.Generator().manual_seed(2), dtype=torch.float64
        )
    for layer in range(LAYERS):
        data = data_of(config, prompt, layer)
        truth = reference.capacities(
            method,
            budget=40,
            window=8,
            prompt=prompt,
            layers=LAYERS,
            kv_heads=KV_HEADS,
            layer=layer,
            importances=data.importance[0].tolist(),
            ratio=0.25,
            scores=table.tolist(),
        )
        assert allocate(data)[0].tolist() == truth


def test_a_dropped_surplus_lowers_the_effective_budget_and_redistribution_restores_it():
    concentrated = torch.full((LAYERS, KV_HEADS * GROUP), 1e-3, dtype=torch.float64)
    concentrated[0, 0] = 10.0
    config = CompressionConfig(budget=60, window=8, head_scores=HeadScores(concentrated))
    dropped = all_layers(config, 100)
    assert float(dropped.double().mean()) < 30
    spread = all_layers(config.replace(surplus="redistribute"), 100)
    assert float(spread.double().mean()) == 60.0
    assert bool((spread >= dropped).all())


def test_rows_of_a_batch_are_allocated_apart():
    config = CompressionConfig(method="adakv", budget=30, window=8)
    long, short = data_of(config, 150, seed=1), data_of(config, 70, seed=2)
    padded = torch.nn.functional.pad(short.importance, (80, 0))
    both = AllocationInput(
        config, 0, LAYERS, KV_HEADS, 6, torch.tensor([150, 70]), torch.cat([long.importance, padded])
    )
    assert allocate(both).tolist() == [allocate(long)[0].tolist(), allocate(short)[0].tolist()]


def test_one_layer_pyramid_is_uniform():
    config = CompressionConfig(method="pyramidkv", budget=30, window=8)
    assert allocate(data_of(config, 100, layers=1)).eq(30).all()


def test_random_scores_are_drawn_once_for_the_model():
    config = CompressionConfig(method="random", budget=30, window=8, seed=4)
    assert abs(int(all_layers(config, 500).sum()) - 30 * LAYERS * KV_HEADS) <= LAYERS * KV_HEADS
    assert not torch.equal(all_layers(config, 500), all_layers(config.replace(seed=5), 500))


def test_every_method_has_an_allocator():
    assert set(ALLOCATORS) == set(METHODS) - {"fullkv"}
