"""The method x model matrix on tiny random models of every family."""

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MllamaForCausalLM,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

from sparsemm_eval import CompressionConfig, HeadScores, RaggedCache, compress
from sparsemm_eval.errors import ConfigError, HeadScoreError, UnsupportedError
from sparsemm_eval.methods import Method, keep
from sparsemm_eval.methods.snapkv import uniform
from tests.methods import matrix
from tests.methods.matrix import EVICTING, LOSSLESS, registered
from tests.model.naive_attention import NaiveAttention, naive_attention
from tests.tiny_models import FAMILIES, IMAGE_FAMILIES, answer, generate, model_of, prompt_of, text_prompt

BATCH = (150, 90, 40)


def scores_of(model, seed=0):
    config = model.config.get_text_config()
    shape = config.num_hidden_layers, config.num_attention_heads
    return HeadScores(torch.rand(shape, generator=torch.Generator().manual_seed(seed)) ** 6)


def config_of(method, model, budget=24, **knobs):
    return matrix.config_of(method, scores_of(model), budget=budget, window=8, **knobs)


@contextmanager
def known_to_the_cache(session):
    """What its prompts' caches know beside queries, keys and values, filled in when one is compressed."""
    known, original = {}, session.new_cache

    def new_cache(*args):
        cache = original(*args)
        finish = cache.stats

        def stats():
            shared = cache.shared
            known.update(images=shared.images, rotation=shared.rotation, received=shared.received)
            return finish()

        cache.stats = stats
        return cache

    session.new_cache = new_cache
    yield known


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", LOSSLESS)
def test_lossless_when_nothing_is_evicted(family, method):
    model, prompt = model_of(family), prompt_of(family, BATCH)
    for inputs in (prompt.inputs, prompt.rows[0]):
        truth, truth_logits = answer(model, inputs)
        with compress(model, config_of(method, model, budget=4096)) as session:
            ours, logits = answer(model, inputs)
            assert session.stats.kv_bytes.tolist() == session.stats.kv_bytes_full.tolist()
        assert torch.equal(ours, truth)
        assert all(torch.equal(a, b) for a, b in zip(logits, truth_logits, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", EVICTING)
def test_rows_of_a_batch_answer_as_alone(family, method):
    model, prompt = model_of(family), prompt_of(family, BATCH)
    full = generate(model, prompt.inputs)
    with compress(model, config_of(method, model)) as session:
        together = generate(model, prompt.inputs)
        kept = session.stats.kept
        for row, inputs in enumerate(prompt.rows):
            assert torch.equal(generate(model, inputs)[0], together[row])
            assert torch.equal(session.stats.kept[:, 0], kept[:, row])
    assert not torch.equal(together, full)  # so much is evicted that it shows


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", EVICTING)
def test_bytes_shrink_as_keep_says(family, method):
    model, prompt = model_of(family), prompt_of(family)
    config = config_of(method, model)
    with compress(model, config) as session, known_to_the_cache(session) as known:
        generate(model, prompt.rows[0], tokens=3)
    recorder = NaiveAttention(**known)
    with naive_attention(model, recorder), torch.inference_mode():
        model(**prompt.rows[0])
    expected = torch.stack([mask[0].sum(-1) for mask in keep(config, recorder.views)])
    dim = recorder.views[0].key.shape[-1]
    assert torch.equal(session.stats.kept[:, 0], expected)
    assert session.stats.kv_bytes.tolist() == [int(expected.sum()) * dim * 2 * 4]
    assert session.stats.effective_budget == pytest.approx(float(expected.double().mean()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", EVICTING)
def test_decoding_attends_to_what_loops_say(family, method):
    model, prompt = model_of(family), prompt_of(family)
    config = config_of(method, model)
    with compress(model, config) as session, known_to_the_cache(session) as known:
        _, ours = answer(model, prompt.rows[0], tokens=4)
    naive = NaiveAttention(config, scores_of(model).table.tolist(), **known)
    with naive_attention(model, naive):
        _, truth = answer(model, prompt.rows[0], tokens=4)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["fullkv", "sparsemm"])
def test_a_manual_decode_loop_equals_generate(family, method):
    model, prompt = model_of(family), prompt_of(family)
    inputs = prompt.rows[0]
    with compress(model, config_of(method, model)) as session, torch.inference_mode():
        expected = generate(model, inputs, tokens=6)
        output = model(**inputs)
        cache, tokens = output.past_key_values, []
        assert isinstance(cache, RaggedCache)
        for _ in range(6):
            tokens.append(output.logits[:, -1].argmax(-1, keepdim=True))
            assert cache.get_seq_length() == inputs["input_ids"].shape[1] + len(tokens) - 1
            output = model(input_ids=tokens[-1], past_key_values=cache)
        assert torch.equal(torch.cat(tokens, 1), expected)
        assert cache.stats().kept.tolist() == session.stats.kept.tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["sparsemm", "cake", "lookm"])  # stored at once; cut again later; merged
def test_no_dense_keys_or_values_live_after_prefill(family, method, monkeypatch):
    from sparsemm_eval.cache import ragged_cache as cache_module

    model, prompt = model_of(family), prompt_of(family, BATCH)
    alive, most = [], 0
    original = cache_module.RaggedLayer.update

    def update(layer, key, value, *args, **kwargs):
        nonlocal most
        if not layer.is_prefilled:
            alive.append(weakref.ref(key.untyped_storage()))
            most = max(most, sum(ref() is not None for ref in alive))
        return original(layer, key, value, *args, **kwargs)

    monkeypatch.setattr(cache_module.RaggedLayer, "update", update)
    with compress(model, config_of(method, model)), torch.inference_mode():
        output = model(**prompt.inputs)
        gc.collect()
        assert output.past_key_values.is_prefilled
        assert all(layer.keys is None and layer.values is None for layer in output.past_key_values.layers)
        stored = sum(layer.store.nbytes for layer in output.past_key_values.layers)
    dense = sum(layer.dense_bytes for layer in output.past_key_values.layers)
    assert len(alive) == len(output.past_key_values.layers)
    assert most <= 2  # this layer's, and the one before until its local names go
    assert sum(ref() is not None for ref in alive) == 0
    assert stored < dense


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
@pytest.mark.parametrize("method", EVICTING)
def test_text_only_prompts(family, method):
    model = model_of(family)
    prompt = text_prompt((60, 35), vocabulary=model.config.get_text_config().vocab_size)
    with compress(model, config_of(method, model)) as session:
        together = generate(model, prompt.inputs)
        assert session.stats.prompt_lengths.tolist() == [60, 35]
        alone = torch.cat([generate(model, row) for row in prompt.rows])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("method", LOSSLESS)
def test_a_prompt_shorter_than_the_window(method):
    model, prompt = model_of("mistral"), text_prompt((5, 3))
    truth = generate(model, prompt.inputs)
    with compress(model, config_of(method, model)) as session:
        assert torch.equal(generate(model, prompt.inputs), truth)
        assert session.stats.effective_budgets.tolist() == [5.0, 3.0]


def test_a_one_token_prompt_and_a_one_token_answer():
    model = model_of("llama")
    for prompt, tokens in ((text_prompt((1,)), 5), (text_prompt((90,)), 1)):
        truth = generate(model, prompt.inputs, tokens=tokens)
        with compress(model, config_of("snapkv", model, budget=100)) as session:
            assert torch.equal(generate(model, prompt.inputs, tokens=tokens), truth)
        assert session.stats.generated == tokens - 1
        assert (session.stats.decode_seconds_per_step is None) == (tokens == 1)


def test_answers_longer_than_the_reserve():
    model, prompt = model_of("llama"), text_prompt((60, 40))
    with compress(model, config_of("fullkv", model)):
        long = generate(model, prompt.inputs, tokens=300)
    assert torch.equal(long, generate(model, prompt.inputs, tokens=300))
    with compress(model, config_of("adakv", model)):
        together = generate(model, prompt.inputs, tokens=300)
        alone = torch.cat([generate(model, row, tokens=300) for row in prompt.rows])
    assert torch.equal(together, alone)


def test_sampling_with_a_seed_equals_fullkv_when_nothing_is_evicted():
    model, prompt = model_of("qwen2"), text_prompt((60, 40))
    sample = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "max_new_tokens": 10}
    torch.manual_seed(5)
    truth = model.generate(**prompt.inputs, **sample)
    torch.manual_seed(5)
    with compress(model, config_of("snapkv", model, budget=300)):
        assert torch.equal(model.generate(**prompt.inputs, **sample), truth)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 3}, "num_beams=3"),
        ({"prompt_lookup_num_tokens": 4}, "prompt_lookup_num_tokens=4"),
        ({"use_cache": False}, "use_cache=False"),
        ({"prefill_chunk_size": 16}, "prefill_chunk_size=16"),
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
        ({"past_key_values": DynamicCache()}, "past_key_values"),
    ],
)
def test_generation_that_needs_evicted_entries_is_refused(arguments, message):
    model, prompt = model_of("llama"), text_prompt((60,))
    with compress(model, config_of("snapkv", model)), pytest.raises(UnsupportedError, match=message):
        generate(model, prompt.inputs, **arguments)


def test_assisted_decoding_is_refused():
    model, prompt = model_of("llama"), text_prompt((60,))
    with (
        compress(model, config_of("snapkv", model)),
        pytest.raises(UnsupportedError, match="assistant_model"),
    ):
        generate(model, prompt.inputs, assistant_model=model_of("mistral"))


def test_beam_search_that_goes_around_the_session_is_refused_too():
    model, prompt = model_of("llama"), text_prompt((60,))
    with compress(model, config_of("snapkv", model)) as session:
        bypass = type(model).generate
        with pytest.raises(UnsupportedError, match="beam search"), torch.inference_mode():
            bypass(
                model,
                **prompt.inputs,
                num_beams=2,
                past_key_values=session.new_cache(),
                max_new_tokens=6,
            )


def test_a_second_chunk_of_prompt_is_refused():
    model, prompt = model_of("llama"), text_prompt((60,))
    with compress(model, config_of("snapkv", model)), torch.inference_mode():
        cache = model(**prompt.inputs).past_key_values
        with pytest.raises(UnsupportedError, match="chunked prefill"):
            model(input_ids=prompt.inputs["input_ids"][:, :4], past_key_values=cache)


def test_right_padding_is_refused():
    model, prompt = model_of("llama"), text_prompt((60, 40))
    flipped = {name: tensor.flip(1) for name, tensor in prompt.inputs.items()}
    with (
        compress(model, config_of("snapkv", model)),
        torch.inference_mode(),
        pytest.raises(UnsupportedError, match="padding_side='left'"),
    ):
        model(**flipped)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_as_before_after_an_exception(family):
    model, prompt = model_of(family), prompt_of(family)
    truth = generate(model, prompt.inputs)
    text = model.config.get_text_config()

    def state():
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        return text._attn_implementation, model.config._attn_implementation, hooks, "generate" in vars(model)

    before = state()

    def fail_inside():
        with compress(model, config_of("snapkv", model)):
            assert state() != before
            generate(model, prompt.inputs, tokens=2)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail_inside()
    assert state() == before
    assert torch.equal(generate(model, prompt.inputs), truth)


def test_a_generate_shadowed_by_somebody_else_is_put_back():
    model, prompt = model_of("llama"), text_prompt((60,))
    calls, original = [], model.generate

    def counted(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    model.generate = counted
    try:
        with compress(model, config_of("snapkv", model)):
            generate(model, prompt.inputs, tokens=2)
        assert model.generate is counted
        assert calls == [1]
    finally:
        del model.generate


def test_sessions_do_not_nest():
    model = model_of("llama")
    config = config_of("snapkv", model)
    with compress(model, config), pytest.raises(UnsupportedError, match="already"):
        compress(model, config).__enter__()
    assert model.config._attn_implementation == "sdpa"


def test_a_foreign_cache_is_refused():
    model, prompt = model_of("llama"), text_prompt((60,))
    with compress(model, config_of("snapkv", model)), pytest.raises(UnsupportedError, match="DynamicCache"):
        model(**prompt.inputs, past_key_values=DynamicCache(config=model.config))


def test_a_forward_without_cache_is_left_alone():
    model, prompt = model_of("llama"), text_prompt((60,))
    truth = model(**prompt.inputs, use_cache=False)
    with compress(model, config_of("snapkv", model)):
        ours = model(**prompt.inputs, use_cache=False)
    assert ours.past_key_values is None
    assert torch.equal(ours.logits, truth.logits)


def test_a_ragged_cache_outside_a_session_is_refused():
    model, prompt = model_of("llama"), text_prompt((60,))
    cache = RaggedCache(config_of("snapkv", model), 3)
    with torch.inference_mode():
        model(**prompt.inputs, past_key_values=cache)
        with pytest.raises(UnsupportedError, match="with compress"):
            model(input_ids=prompt.inputs["input_ids"][:, :1], past_key_values=cache)
    with pytest.raises(UnsupportedError, match="no statistics"):
        cache.stats()


def test_the_prompt_may_run_in_another_mode_than_its_continuation():
    for method in ("snapkv", "fullkv"):
        model, prompt = model_of("llama"), text_prompt((60,))
        with compress(model, config_of(method, model)):
            truth = generate(model, prompt.inputs, tokens=40)
        with compress(model, config_of(method, model)) as session:
            cache, tokens = session.new_cache(4), []
            with torch.inference_mode():
                logits = model(**prompt.inputs, past_key_values=cache).logits
            for _ in range(40):
                tokens.append(logits[:, -1].argmax(-1, keepdim=True))
                with torch.no_grad():
                    logits = model(input_ids=tokens[-1], past_key_values=cache).logits
        assert torch.equal(torch.cat(tokens, 1), truth)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, inputs: model(**inputs), "no gradient can flow"),
        (lambda model, inputs: model.generate(**inputs, output_attentions=True), "output_attentions=True"),
        (
            lambda model, inputs: torch.no_grad()(model)(**inputs, output_attentions=True),
            "output_attentions=True",
        ),
    ],
)
def test_what_a_compressed_cache_cannot_give_is_refused(call, message):
    model, prompt = model_of("llama"), text_prompt((60,))
    with compress(model, config_of("snapkv", model)), pytest.raises(UnsupportedError, match=message):
        call(model, prompt.inputs)


@pytest.mark.parametrize("decode", ["eager", "graph"])
def test_arguments_of_generate_by_position(decode):
    model, ids = model_of("llama"), text_prompt((60,)).inputs["input_ids"]
    settings = GenerationConfig(max_new_tokens=7, do_sample=False, eos_token_id=None, pad_token_id=0)
    with compress(model, config_of("snapkv", model)):
        truth = model.generate(input_ids=ids, generation_config=settings)
    with compress(model, config_of("snapkv", model), decode=decode):
        assert torch.equal(model.generate(ids, settings), truth)
        assert torch.equal(model.generate(inputs=ids, generation_config=settings), truth)
        with pytest.raises(UnsupportedError, match="beam search"):
            model.generate(ids, GenerationConfig(num_beams=2))


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel])
def test_models_inside_other_objects_are_refused(wrap):
    model = model_of("llama")
    with pytest.raises(UnsupportedError, match="compress the model inside"):
        compress(wrap(model), config_of("snapkv", model))


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
    "pad_token_id": 0,
}
LLAMA4 = {"intermediate_size_mlp": 64, "num_local_experts": 2, "attention_chunk_size": 32, "head_dim": 16}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
EXPERTS = {"moe_intermediate_size": 32, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
FULL = {"layer_types": ["full_attention"] * 2}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4)), "found attention"),
        (lambda: Llama4ForCausalLM(Llama4TextConfig(**SMALL, **LLAMA4)), "chunked_attention"),
        (lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, sliding_window=16)), "sliding_window=16"),
        (
            lambda: MllamaForCausalLM(MllamaTextConfig(**SMALL, **ROPE, cross_attention_layers=[1])),
            "an encoder's states",
        ),
        (lambda: DeepseekV3ForCausalLM(DeepseekV3Config(**SMALL, **EXPERTS, **LATENT)), "latent attention"),
        (lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, **FULL)), "caps or extends its softmax"),
        (lambda: GptOssForCausalLM(GptOssConfig(**SMALL, **FULL)), "caps or extends its softmax"),
    ],
)
def test_models_of_another_kind_are_refused_before_anything_runs(model, message):
    model = model()
    with pytest.raises(UnsupportedError, match=f"^{type(model).__name__}.*{message}"):
        compress(model, CompressionConfig("snapkv", budget=24, window=8))


def test_missing_and_misshapen_head_scores():
    model = model_of("llama")
    with pytest.raises(ConfigError, match="head_scores=None"):
        compress(model, CompressionConfig(budget=40, window=8))
    with pytest.raises(HeadScoreError, match="the model has"):
        compress(model, CompressionConfig(budget=40, window=8, head_scores=HeadScores(torch.ones(9, 9))))


def test_other_attention_implementations_are_refused():
    model = model_of("llama")
    model.config._attn_implementation = "eager"
    try:
        with pytest.raises(UnsupportedError, match="eager"):
            compress(model, config_of("snapkv", model)).__enter__()
    finally:
        model.config._attn_implementation = "sdpa"


def test_peak_and_end_bytes_are_what_is_alive():
    model, prompt = model_of("llama"), text_prompt((200,))
    with compress(model, config_of("snapkv", model)) as session:
        generate(model, prompt.inputs, tokens=3)
    stats = session.stats
    layers, kv_heads, entry = 3, 4, 2 * 16 * 4
    stored = layers * kv_heads * (32 + 32) * entry  # 24 kept in one block, one block for what is generated
    dense = kv_heads * 200 * entry
    assert stats.kv_bytes_allocated == stored
    assert stats.kv_bytes_peak == dense + stored
    assert stats.prefill_seconds > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", LOSSLESS)
def test_half_precision(dtype, method):
    model, prompt = model_of("mistral"), text_prompt((150, 90))
    model = type(model)(model.config).to(dtype).eval()
    model.load_state_dict(model_of("mistral").state_dict())
    model.generation_config = model_of("mistral").generation_config
    truth = generate(model, prompt.inputs)
    with compress(model, config_of(method, model, budget=200)):
        assert torch.equal(generate(model, prompt.inputs), truth)
    with compress(model, config_of(method, model)) as session:
        assert bool(torch.isfinite(generate(model, prompt.inputs).float()).all())
        assert session.stats.entry_bytes.unique().tolist() == [2 * 8 * 2]


NEEDY = ("values", "images", "output_weight", "rotation")


@pytest.mark.parametrize("family", ["llama", *IMAGE_FAMILIES])
@pytest.mark.parametrize("need", [None, *NEEDY])
def test_a_method_gets_what_it_needs_and_nothing_else(family, need):
    model, prompt = model_of(family), prompt_of(family, (60, 40))
    seen = []

    def note(view):
        seen.append(view)
        return torch.rand(view.batch, view.kv_heads, view.length)

    method = Method("needy", "Needy", score=note, allocate=uniform, needs=() if need is None else (need,))
    with registered(method), compress(model, CompressionConfig("needy", 24, window=8)) as session:
        generate(model, prompt.inputs, tokens=2)
    decoder = session.decoder
    assert [view.layer for view in seen] == list(range(decoder.num_layers))
    for view in seen:
        given = {"values": view.value, "images": view.images, "output_weight": view.output_weight}
        given["rotation"] = view.rotation
        assert [one for one in NEEDY if given[one] is not None] == ([] if need is None else [need])
        assert view.query.shape[1:3] == (decoder.num_heads, prompt.inputs["input_ids"].shape[1])
        assert view.shared is seen[0].shared
        if need == "values":
            assert view.value.shape == view.key.shape
        if need == "output_weight":
            assert view.output_weight is decoder.attentions[view.layer].o_proj.weight
        if need == "images":
            ids = prompt.inputs["input_ids"]
            token = getattr(model.config, "image_token_id", -1)
            assert torch.equal(view.images, ids == token)
            assert bool(view.images.any()) == (family in IMAGE_FAMILIES)
