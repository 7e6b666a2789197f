"""Every allocation: totals, floors, monotony in the budget, never more than the prompt, symmetry in heads."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemm_eval import CompressionConfig, HeadScores
from sparsemm_eval.config import knobs_in_use
from sparsemm_eval.methods import keep, methods
from tests import reference
from tests.methods.matrix import EVICTING, LOSSLESS, config_of, random_views

LAYERS, KV_HEADS, GROUP = 4, 3, 2
BY_SCORE = ("sparsemm", "random")
#: Methods that tell heads apart by what they hold only, not by a table or by chance.
ALIKE = [
    name
    for name in EVICTING
    if "head_scores" not in config_of(name, budget=99).needs
    and not any(knob.draws for knob in knobs_in_use(methods()[name]).values())
]


def scores_of(seed, layers=LAYERS, heads=KV_HEADS * GROUP):
    generator = torch.Generator().manual_seed(seed)
    return HeadScores(torch.rand(layers, heads, generator=generator, dtype=torch.float64) ** 6)


def views_of(prompt, seed=0, layers=LAYERS):
    return random_views(KV_HEADS * GROUP, KV_HEADS, [prompt], layers, dim=4, seed=seed)


def counts(config, views):
    """Entries kept: int64 [L, B, K]."""
    return torch.stack([mask.sum(-1) for mask in keep(config, views)])


@st.composite
def situations(draw, methods=tuple(LOSSLESS)):
    window = draw(st.integers(1, 16))
    config = config_of(
        draw(st.sampled_from(methods)),
        scores_of(draw(st.integers(0, 5))),
        window=window,
        budget=draw(st.integers(window + 4, 120)),
        ratio=draw(st.floats(0, 1)),
        surplus=draw(st.sampled_from(["drop", "redistribute"])),
        adakv_floor=draw(st.floats(0, 1)),
        pyramid_beta=draw(st.integers(1, 40)),
        seed=draw(st.integers(0, 5)),
        sinks=draw(st.integers(0, 3)),
    )
    return config, draw(st.integers(1, 200)), draw(st.integers(0, 3))


@settings(max_examples=100)
@given(situations())
def test_never_more_than_the_prompt_and_never_less_than_what_is_protected(situation):
    config, prompt, seed = situation
    kept = counts(config, views_of(prompt, seed))
    view = replace(views_of(prompt, seed)[0], config=config)
    least = int(config.rule.protect(view).sum()) if config.evicts else prompt
    assert int(kept.max()) <= prompt
    assert int(kept.min()) >= min(least, prompt)
    if not config.evicts or prompt <= config.budget:
        assert kept.eq(prompt).all()


@settings(max_examples=100)
@given(situations(tuple(EVICTING)))
def test_totals(situation):
    config, prompt, seed = situation
    if prompt <= config.budget:
        return
    total, nominal = int(counts(config, views_of(prompt, seed)).sum()), config.budget * LAYERS * KV_HEADS
    surplus = config.knobs.get("surplus")
    if surplus != "redistribute":
        # published rules round: per head, or in the step between layers; and some leave prompts whole that
        # exceed the budget by no more than the window. What is protected is kept in any case.
        view = replace(views_of(prompt, seed)[0], config=config)
        floor = int(config.rule.protect(view).sum()) * LAYERS * KV_HEADS
        most = max(nominal, floor) + KV_HEADS * LAYERS * LAYERS
        if prompt <= config.budget + config.window:
            most = prompt * LAYERS * KV_HEADS
        assert total <= most
    else:
        # pyramidkv shares whole entries among layers, so every head of a layer gets the same
        slack = LAYERS * KV_HEADS if config.method == "pyramidkv" else 0
        assert nominal - slack <= total <= nominal


@settings(max_examples=100)
@given(situations((*BY_SCORE, "adakv")))
def test_floors(situation):
    config, prompt, seed = situation
    if prompt <= config.budget:
        return
    share = config.ratio if config.method in BY_SCORE else config.adakv_floor
    floor = config.window + int(share * (config.budget - config.window))
    assert int(counts(config, views_of(prompt, seed)).min()) >= min(floor, prompt)


@settings(max_examples=100)
@given(situations(tuple(EVICTING)))
def test_monotonic_in_the_budget(situation):
    config, prompt, seed = situation
    less = counts(config, views_of(prompt, seed))
    more = counts(config.replace(budget=config.budget + 1), views_of(prompt, seed))
    assert int(more.sum()) >= int(less.sum()) - LAYERS * LAYERS * KV_HEADS  # rounding may take some away
    # where heads or layers compete, one may lose what another wins
    if config.method in ("snapkv", "sparsemm", "random", "headkv", "duoattention"):
        allowed = 1 if config.knobs.get("surplus") == "redistribute" else 0
        assert bool((more >= less - allowed).all())


@settings(max_examples=60)
@given(st.permutations(range(KV_HEADS)), st.sampled_from(ALIKE))
def test_heads_are_treated_alike(order, method):
    config = config_of(method, budget=40, window=8, lag=16)
    views = views_of(150)

    def shuffled(view):
        query = view.query.view(1, KV_HEADS, GROUP, 150, -1)[:, order].flatten(1, 2)
        weight = view.output_weight.view(5, KV_HEADS, -1)[:, order].flatten(1)
        return replace(
            view,
            query=query,
            key=view.key[:, order],
            value=view.value[:, order],
            output_weight=weight,
            received=view.received[:, :, order],
        )

    found = keep(config, [shuffled(view) for view in views])
    for mask, one in zip(found, keep(config, views), strict=True):
        assert torch.equal(mask, one[:, order])


@settings(max_examples=60)
@given(st.permutations(range(LAYERS * KV_HEADS)), st.sampled_from(["drop", "redistribute"]))
def test_sparsemm_budgets_follow_their_scores(order, surplus):
    table = scores_of(3, LAYERS, KV_HEADS).table
    config = CompressionConfig(budget=40, window=8, surplus=surplus)
    views = random_views(KV_HEADS, KV_HEADS, [150], LAYERS, dim=4)

    def kept(scores):
        return counts(config.replace(head_scores=HeadScores(scores)), views).flatten()

    difference = kept(table.flatten()[order].view_as(table)) - kept(table)[order]
    assert int(difference.abs().max()) <= (1 if surplus == "redistribute" else 0)


@pytest.mark.parametrize("method", ["snapkv", "pyramidkv", "adakv", "sparsemm", "random"])
@pytest.mark.parametrize("prompt", [5, 30, 41, 90, 400])
def test_equals_loops(method, prompt):
    """Allocations of made-up scores, which random queries and keys could not give."""
    config = config_of(method, scores_of(1), budget=40, window=8, ratio=0.25, seed=2)
    table = scores_of(1).table
    if method == "random":
        generator = torch.Generator().manual_seed(2)
        table = torch.rand(LAYERS, KV_HEADS * GROUP, generator=generator, dtype=torch.float64)
    for layer in range(LAYERS):
        generator = torch.Generator().manual_seed(layer)
        importance = torch.rand(KV_HEADS, max(prompt - 8, 0), generator=generator) ** 4
        importance /= importance.sum(-1, keepdim=True).clamp_min(1e-9)
        view = replace(views_of(prompt)[0], config=config, layer=layer, layers=LAYERS)
        scores = torch.nn.functional.pad(importance, (min(prompt, 8), 0)).roll(-min(prompt, 8), -1)
        truth = reference.capacities(
            method,
            budget=40,
            window=8,
            prompt=prompt,
            layers=LAYERS,
            kv_heads=KV_HEADS,
            layer=layer,
            importances=importance.tolist(),
            ratio=0.25,
            floor=0.2,
            beta=20,
            scores=table.tolist(),
        )
        if prompt > 40:
            found = config.rule.allocate(view, scores[None])[0].clamp(max=prompt).tolist()
            assert found == truth
        else:
            assert truth == [prompt] * KV_HEADS


def test_a_dropped_surplus_lowers_the_effective_budget_and_redistribution_restores_it():
    concentrated = torch.full((LAYERS, KV_HEADS * GROUP), 1e-3, dtype=torch.float64)
    concentrated[0, 0] = 10.0
    config = CompressionConfig(budget=60, window=8, head_scores=HeadScores(concentrated))
    dropped = counts(config, views_of(100))
    assert float(dropped.double().mean()) < 30
    spread = counts(config.replace(surplus="redistribute"), views_of(100))
    assert float(spread.double().mean()) == 60.0
    assert bool((spread >= dropped).all())


def test_one_layer_pyramid_is_uniform():
    assert counts(CompressionConfig("pyramidkv", budget=30, window=8), views_of(100, layers=1)).eq(30).all()


def test_random_scores_are_drawn_once_for_the_model():
    config = CompressionConfig("random", budget=30, window=8, seed=4)
    kept = counts(config, views_of(500))
    assert abs(int(kept.sum()) - 30 * LAYERS * KV_HEADS) <= LAYERS * KV_HEADS
    assert not torch.equal(kept, counts(config.replace(seed=5), views_of(500)))


def test_streamingllm_without_sinks_is_a_window():
    config = CompressionConfig("streamingllm", budget=20, sinks=0)
    assert all(mask[..., -20:].all() and not mask[..., :-20].any() for mask in keep(config, views_of(90)))
