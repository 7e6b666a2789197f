"""The decode step as one compiled graph, valid for every later sample."""

import time
import warnings
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig

from sparsemm_eval import compress
from sparsemm_eval.decode.capture import ReadySteps, computation_of
from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.model import session
from sparsemm_eval.model.masked_heads import masked_heads
from tests.model.test_session import config_of
from tests.tiny_models import generate, image_prompt, model_of, text_prompt


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Nothing compiled before counts, and nothing stays."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def by_generate(backend):
    """Settings that make ``generate`` compile on a CPU, as it does on a GPU."""
    settings = CompileConfig(fullgraph=True, backend=backend, mode=None)
    settings._compile_all_devices = True
    return {"compile_config": settings}


def run(model, config, prompts, decode, **more):
    """Tokens of all prompts, longest first; compiling is an error after the first."""
    with compress(model, config, decode=decode) as session, torch.inference_mode():
        tokens = []
        for number, inputs in enumerate(prompts):
            stance = "fail_on_recompile" if number else "default"
            with torch.compiler.set_stance(stance):
                output = model.generate(**inputs, max_new_tokens=12, do_sample=False, **more)
            tokens.append(output[:, inputs["input_ids"].shape[1] :])
            if number == 0:
                places = session.arena.addresses()
        assert session.arena.addresses() == places
    return tokens


def check(family, prompts, decode, **more):
    model = model_of(family)
    config = config_of("sparsemm", model)
    truth = []
    with compress(model, config):
        truth = [generate(model, inputs) for inputs in prompts]
    ours = run(model, config, prompts, decode, **more)
    assert all(torch.equal(a, b) for a, b in zip(ours, truth, strict=True))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    model.__dict__.pop("_compiled_call", None)


TEXTS = [text_prompt((length,)).rows[0] for length in (150, 40, 97, 151)]


def test_generate_compiles_one_graph_for_prompts_of_any_length():
    check("llama", TEXTS, "compile", **by_generate("eager"))


def test_generate_compiles_one_graph_for_images():
    pages = sorted(image_prompt("tiny-reader-qwen2vl", 3).rows, key=lambda row: -row["input_ids"].shape[1])
    check("tiny-reader-qwen2vl", pages, "compile", **by_generate("aot_eager"))


def test_fullkv_in_the_same_mode():
    model = model_of("mistral")
    config = config_of("fullkv", model)
    truth = [generate(model, inputs) for inputs in TEXTS]
    ours = run(model, config, TEXTS, "compile", **by_generate("eager"))
    assert all(torch.equal(a, b) for a, b in zip(ours, truth, strict=True))
    assert counters["stats"]["unique_graphs"] == 1
    model.__dict__.pop("_compiled_call", None)


@pytest.mark.slow
def test_the_fused_step_by_inductor():
    check("llama", TEXTS, "fused")


@pytest.fixture
def quick_compiler(monkeypatch):
    """Fused steps are traced as always, and then run by torch itself: seconds less per graph."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def tokens_of(model, inputs, count, **more):
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=count, do_sample=False, **more)
    return output[:, inputs["input_ids"].shape[1] :]


MODES = {"fused": {}, "compile": by_generate("eager"), "graph": {}}


@pytest.mark.parametrize("mode", MODES)
def test_heads_masked_later_are_masked_in_compiled_steps_too(mode, quick_compiler):
    model, inputs, heads = model_of("llama"), TEXTS[1], [(0, 0), (1, 1), (2, 2), (0, 3)]

    def answers(decode, more):
        with compress(model, config_of("snapkv", model), decode=decode):
            plain = tokens_of(model, inputs, 12, **more)
            with masked_heads(model, heads):
                masked = tokens_of(model, inputs, 12, **more)
            return plain, masked, tokens_of(model, inputs, 12, **more)

    truth, found = answers("eager", {}), answers(mode, MODES[mode])
    assert not torch.equal(truth[0], truth[1])
    assert all(torch.equal(a, b) for a, b in zip(found, truth, strict=True))
    assert not any("compiled" in name for name in vars(model))


def test_a_captured_step_is_bound_to_hooks_and_weights():
    model = model_of("llama")
    before = computation_of(model)
    with masked_heads(model, [(0, 0)]):
        assert computation_of(model) != before
    assert computation_of(model) == before
    layer = model.model.layers[0].self_attn.q_proj
    kept = layer.weight
    layer.weight = torch.nn.Parameter(kept.detach().clone())
    assert computation_of(model) != before
    layer.weight = kept


def test_more_batch_sizes_than_torch_compiles_by_itself(quick_compiler):
    model, config = model_of("llama"), config_of("snapkv", model_of("llama"))
    for rows in range(1, 11):
        inputs = text_prompt((40,) * rows).inputs
        with compress(model, config):
            truth = tokens_of(model, inputs, 6)
        with compress(model, config, decode="fused"):
            assert torch.equal(tokens_of(model, inputs, 6), truth)
    assert counters["stats"]["unique_graphs"] == 10


def test_beyond_the_limit_steps_run_uncompiled_and_say_so(quick_compiler, monkeypatch):
    monkeypatch.setattr(session, "RECOMPILE_LIMIT", 2)
    model = model_of("llama")
    with compress(model, config_of("snapkv", model), decode="fused"):
        for rows in (1, 2, 3):
            inputs = text_prompt((40,) * rows).inputs
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = tokens_of(model, inputs, 6)
            said = any("use fewer batch sizes" in str(warning.message) for warning in caught)
            assert said == (rows == 3)
    with compress(model, config_of("snapkv", model)):
        assert torch.equal(tokens_of(model, inputs, 6), found)


@pytest.mark.parametrize("mode", ["fused", "compile"])
def test_compiling_is_no_part_of_the_time_per_token(mode, quick_compiler):
    model = model_of("llama")
    with compress(model, config_of("snapkv", model), decode=mode) as running:
        tokens_of(model, TEXTS[0], 6, **MODES[mode])
        first = running.stats
        tokens_of(model, TEXTS[0], 6, **MODES[mode])
    assert first.warm_up_seconds > 0
    assert running.stats.warm_up_seconds == 0
    assert first.decode_seconds_per_step > 0


def test_a_capture_that_compiles_is_counted_once(quick_compiler, monkeypatch):
    """On a GPU a step is compiled inside its first capture."""
    run = ReadySteps.run

    def captured(self, ready, count):
        started = time.perf_counter()
        tokens = run(self, ready, count)
        self.capture_seconds += time.perf_counter() - started
        return tokens

    monkeypatch.setattr(ReadySteps, "run", captured)
    model = model_of("llama")
    started = time.perf_counter()
    with compress(model, config_of("snapkv", model), decode="fused") as running:
        tokens_of(model, TEXTS[0], 6)
    assert 0 < running.stats.warm_up_seconds < time.perf_counter() - started
    assert running.stats.decode_seconds_per_step > 0


def test_a_token_without_room_is_refused_and_a_replaced_cache_too():
    model, inputs = model_of("llama"), TEXTS[1]
    with compress(model, config_of("snapkv", model), decode="compile") as session, torch.inference_mode():
        cache = session.new_cache(1)
        token = model(**inputs, past_key_values=cache).logits[:, -1].argmax(-1, keepdim=True)
        while cache.layers[0].generated < cache.layers[0].store.room:
            model(input_ids=token, past_key_values=cache)
        with pytest.raises(RuntimeError, match="no room"):
            model(input_ids=token, past_key_values=cache)
        session.new_cache()
        with pytest.raises(UnsupportedError, match="replaced by a newer one"):
            model(input_ids=token, past_key_values=cache)


def test_a_manual_loop_continues_at_the_right_position():
    model, inputs = model_of("llama"), TEXTS[1]
    with compress(model, config_of("snapkv", model)):
        expected = generate(model, inputs, tokens=6)
    with compress(model, config_of("snapkv", model), decode="compile") as session, torch.inference_mode():
        cache, tokens = session.new_cache(6), []
        output = model(**inputs, past_key_values=cache)
        for _ in range(6):
            tokens.append(output.logits[:, -1].argmax(-1, keepdim=True))
            assert int(cache.get_seq_length()) == 40 + len(tokens) - 1
            output = model(input_ids=tokens[-1], past_key_values=cache)
    assert torch.equal(torch.cat(tokens, 1), expected)
    assert cache.stats().generated == 6
