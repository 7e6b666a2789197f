"""Methods at the edges: prompts that fit beside others, masks that are not given, values all alike."""

import pytest
import torch
from transformers import TextStreamer

from sparsemm_eval import CompressionConfig, HeadScores, compress
from sparsemm_eval.errors import ConfigError, UnsupportedError
from sparsemm_eval.methods import keep
from tests.methods import matrix
from tests.methods.matrix import random_views
from tests.model.test_session import config_of, scores_of
from tests.tiny_models import generate, model_of, prompt_of, text_prompt


@pytest.mark.parametrize("decode", ["eager", "graph"])
def test_query_heads_of_prompts_that_fit_share_their_entries(decode):
    model, prompt = model_of("qwen2"), text_prompt((30,))
    config = config_of("headkv", model, budget=100, headkv_per="query_head")
    truth = generate(model, prompt.inputs)
    with compress(model, config, decode=decode) as session, torch.inference_mode():
        session.evidence = torch.ones(1, 30, dtype=torch.bool)
        output = model.generate(**prompt.inputs, max_new_tokens=truth.shape[1], do_sample=False)
    assert torch.equal(output[:, 30:], truth)
    assert session.stats.kept.eq(30).all()
    assert session.stats.evidence_kept.shape == session.stats.kept.shape
    assert session.stats.kv_bytes.tolist() == session.stats.kv_bytes_full.tolist()


@pytest.mark.parametrize("method", ["kvzip", "oracle"])
@pytest.mark.parametrize("prune", ["fastv", "divprune"])
@pytest.mark.parametrize("budget", [24, 4096])
def test_first_passes_beside_pruning(method, prune, budget):
    model, prompt = model_of("tiny-reader"), prompt_of("tiny-reader", (150, 90))
    config = config_of(method, model, budget=budget, prune=prune)
    with compress(model, config) as session:
        together = generate(model, prompt.inputs, tokens=4)
        kept = session.stats.kept
        for row, inputs in enumerate(prompt.rows):
            assert torch.equal(generate(model, inputs, tokens=4)[0], together[row])
            assert torch.equal(session.stats.kept[:, 0], kept[:, row])


@pytest.mark.parametrize("method", matrix.EVICTING)
def test_layers_that_hold_less_than_the_window(method):
    model, prompt = model_of("tiny-reader"), prompt_of("tiny-reader")
    given = {"budget": 40, "window": 30, "prune": "fastv", "image_share": 0.02, "prune_layer": 1}
    with compress(model, matrix.config_of(method, scores_of(model), **given)) as session:
        generate(model, prompt.rows[0], tokens=3)
    assert int(session.stats.layer_lengths[-1]) < 30
    assert (session.stats.kept[-1] <= session.stats.layer_lengths[-1]).all()


@pytest.mark.parametrize("method", ["snapkv", "cake", "vlcache"])
def test_peak_memory_is_what_lives_at_a_time(method):
    model, prompt = model_of("llama"), text_prompt((300,))
    with compress(model, config_of(method, model, budget=24)) as session:
        generate(model, prompt.inputs, tokens=2)
    stats = session.stats
    dense = int(stats.kv_bytes_full[0]) / len(stats.kept)  # of one layer
    assert dense < stats.kv_bytes_peak < dense + 2.5 * stats.kv_bytes_allocated


@pytest.mark.parametrize("method", ["kvzip", "oracle"])
def test_what_a_first_pass_cannot_do_is_named(method):
    model, prompt = model_of("llama"), text_prompt((60,))
    with (
        compress(model, config_of(method, model)),
        pytest.raises(UnsupportedError, match=f"num_return_sequences=2.*{method}"),
    ):
        model.generate(**prompt.inputs, num_return_sequences=2, do_sample=True, max_new_tokens=2)


class Streamed(TextStreamer):
    """Notes what is put into it."""

    def __init__(self):
        self.tokens, self.ends = [], 0

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ends += 1


def test_a_streamer_gets_one_answer():
    model, prompt, streamer = model_of("llama"), text_prompt((60,)), Streamed()
    with compress(model, config_of("oracle", model)):
        output = model.generate(**prompt.inputs, max_new_tokens=4, do_sample=False, streamer=streamer)
    assert streamer.tokens == output[0].tolist()
    assert streamer.ends == 1


@pytest.mark.parametrize("method", ["snapkv", "kvzip", "oracle"])
def test_padding_is_seen_without_a_mask_too(method):
    model, prompt = model_of("llama"), text_prompt((60, 40))
    with compress(model, config_of(method, model)) as session:
        expected = generate(model, prompt.inputs, tokens=4)
        kept = session.stats.kept
        ids = prompt.inputs["input_ids"]
        output = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(output[:, ids.shape[1] :], expected)
    assert torch.equal(session.stats.kept, kept)


@pytest.mark.parametrize("method", ["kvzip", "vlcache"])
def test_a_share_of_the_prompt_stands_in_place_of_the_budget(method):
    views = random_views(4, 2, [100, 60])
    few, many = (
        keep(matrix.config_of(method, budget=budget, window=4, prompt_share=0.2), views)
        for budget in (24, 256)
    )
    for one, other in zip(few, many, strict=True):
        assert torch.equal(one, other)
        assert one.sum() < 0.5 * one.numel()


def test_values_that_are_all_alike_do_not_push_out_what_is_protected():
    views = random_views(4, 2, [100])
    for view in views:
        view.key[:, :, 20:70], view.value[:, :, 20:70] = 1.0, 1.0
    config = CompressionConfig("lagkv", budget=45, lag=8, lag_ranks="prompt")
    for mask in keep(config, views):
        assert mask[..., :4].all()
        assert mask[..., -8:].all()
        assert mask.sum(-1).eq(45).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "kvzip", "budget": 3}, "budget=3 is not valid.*sinks"),
        ({"method": "cake", "cake_tau1": 0.001}, r"cake_tau1=0.001 is not valid.*>= 0.1"),
        ({"method": "headkv", "headkv_beta": 0.5}, r"headkv_beta=0.5 is not valid.*>= 1"),
        ({"method": "adakv", "score": "knorm"}, "score='knorm' is not valid.*below zero"),
        ({"method": "kvzip", "score": "mixkv"}, "score='mixkv' is not valid"),
        ({"method": "duoattention", "score": "knorm"}, "score='knorm' is not valid.*first and last"),
        (
            {"method": "mixkv", "redundancy": "no-such.json"},
            "redundancy=.no-such.json. is not.*JSON file",
        ),
    ],
)
def test_what_cannot_work_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        CompressionConfig(**settings)


@pytest.mark.parametrize(
    ("method", "settings"), [("headkv", {"headkv_temp": 1000}), ("fovea", {"fovea_power": 5000})]
)
def test_extreme_exponents_keep_to_the_budget(method, settings):
    table = HeadScores(torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) + 0.1)
    config = matrix.config_of(method, table, budget=24, window=8, **settings)
    total = sum(int(mask.sum()) for mask in keep(config, random_views(4, 2, [100])))
    assert 100 < total <= 24 * 6
