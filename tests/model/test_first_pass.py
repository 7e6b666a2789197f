"""Passes before the prompt, against attention weights that transformers' eager attention gives out."""

from contextlib import contextmanager

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from sparsemm_eval import CompressionConfig, compress
from sparsemm_eval.errors import UnsupportedError
from tests.model.test_session import BATCH, known_to_the_cache
from tests.tiny_models import VOCABULARY, generate, model_of, prompt_of, text_prompt

FAMILIES = ("llama", "mistral", "tiny-reader", "tiny-reader-qwen2vl")


@contextmanager
def eager_attention(model):
    config = model.config.get_text_config(decoder=True)
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def weights(model, inputs):
    """float32 [L, H, T, T] of a batch of one."""
    with eager_attention(model), torch.inference_mode():
        return torch.cat(model(**inputs, output_attentions=True).attentions)


def received(model, method, inputs, **generation):
    """What the method's first pass gave the caches of a call: float32 [L, B, K, N]."""
    config = CompressionConfig(method, budget=24, **({"window": 8} if method == "oracle" else {}))
    with compress(model, config) as session, known_to_the_cache(session) as known, torch.inference_mode():
        model.generate(**inputs, do_sample=False, **generation)
    return known["received"]


def grouped(attention, kv_heads, by):
    """[L, H, ...] -> [L, K, ...]."""
    return getattr(attention.unflatten(1, (kv_heads, -1)), by)(2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answers_attention(family):
    model, [inputs] = model_of(family), prompt_of(family).rows
    kv_heads = model.config.get_text_config().num_key_value_heads
    answer = generate(model, inputs, tokens=5)
    length = inputs["input_ids"].shape[1]
    ids = torch.cat([inputs["input_ids"], answer[:, :4]], 1)
    attention = weights(model, extended(inputs, ids))[:, :, length - 1 :, :length].sum(2)
    found = received(model, "oracle", inputs, max_new_tokens=5)[:, 0]
    torch.testing.assert_close(found, grouped(attention, kv_heads, "mean"), rtol=1e-3, atol=1e-5)


def extended(inputs, ids):
    """A prompt's inputs with other tokens, its images as they are."""
    found = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inputs:
        more = ids.shape[1] - inputs["input_ids"].shape[1]
        found["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, more))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_while_the_context_is_repeated(family):
    model, [inputs] = model_of(family), prompt_of(family).rows
    kv_heads, ids = model.config.get_text_config().num_key_value_heads, inputs["input_ids"]
    context = ids.shape[1]
    if "pixel_values" in inputs:
        context = int((ids[0] == model.config.image_token_id).nonzero()[-1]) + 1
    begin = model.generation_config.bos_token_id
    again = ids[:, 1:context] if begin is not None and int(ids[0, 0]) == begin else ids[:, :context]
    twice = torch.cat([ids[:, :context], again], 1)
    doubled = {"input_ids": twice, "attention_mask": torch.ones_like(twice)}
    if "pixel_values" in inputs:
        for name in ("pixel_values", "image_sizes", "image_grid_thw"):
            if name in inputs:
                doubled[name] = torch.cat([inputs[name]] * 2)
        if "mm_token_type_ids" in inputs:
            doubled["mm_token_type_ids"] = (twice == model.config.image_token_id).to(ids)
    attention = weights(model, doubled)[:, :, context:, :context].amax(2)
    found = received(model, "kvzip", inputs, max_new_tokens=2)[:, 0]
    torch.testing.assert_close(
        found[..., :context], grouped(attention, kv_heads, "amax"), rtol=1e-3, atol=1e-5
    )
    assert (found[..., context:] == 0).all()


@pytest.mark.parametrize("family", ["mistral", "tiny-reader"])
@pytest.mark.parametrize("method", ["oracle", "kvzip"])
def test_rows_of_a_batch_receive_what_they_receive_alone(family, method):
    model, prompt = model_of(family), prompt_of(family, BATCH)
    together = received(model, method, prompt.inputs, max_new_tokens=4)
    for row, inputs in enumerate(prompt.rows):
        alone = received(model, method, inputs, max_new_tokens=4)[:, 0]
        padding = together.shape[-1] - alone.shape[-1]
        torch.testing.assert_close(together[:, row, :, padding:], alone, rtol=1e-3, atol=1e-5)
        assert (together[:, row, :, :padding] == 0).all()


def test_tokens_behind_the_end_of_an_answer_count_for_nothing():
    model, prompt = model_of("llama"), text_prompt((60, 40))
    answers = generate(model, prompt.inputs, tokens=6)
    place, end = next(
        (place, token)
        for place, token in enumerate(answers[1].tolist())
        if place and token not in (*answers[0].tolist(), *answers[1, :place].tolist())
    )
    ended = received(model, "oracle", prompt.inputs, max_new_tokens=6, eos_token_id=end)
    short = received(model, "oracle", prompt.rows[1], max_new_tokens=place + 1)
    torch.testing.assert_close(ended[:, 1, :, 20:], short[:, 0], rtol=1e-3, atol=1e-5)


class EndOfRow(StoppingCriteria):
    """Ends the second row after three tokens, as a stop text does."""

    def __call__(self, input_ids, scores, **kwargs):
        rows = torch.arange(len(input_ids))
        return (rows == 1) & (input_ids.shape[1] >= 63)


def test_padding_behind_a_stop_text_counts_for_nothing():
    model, prompt = model_of("llama"), text_prompt((60, 40))
    never = (
        set(range(1, VOCABULARY)) - set(generate(model, prompt.inputs, tokens=6).flatten().tolist())
    ).pop()
    stops = {"stopping_criteria": StoppingCriteriaList([EndOfRow()]), "eos_token_id": never}
    stopped = received(model, "oracle", prompt.inputs, max_new_tokens=6, **stops)
    short = received(model, "oracle", prompt.rows[1], max_new_tokens=3)
    torch.testing.assert_close(stopped[:, 1, :, 20:], short[:, 0], rtol=1e-3, atol=1e-5)


def test_a_prompt_within_the_budget_is_read_once():
    model, prompt = model_of("llama"), text_prompt((20,))
    calls = []
    hook = model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        assert received(model, "oracle", prompt.inputs, max_new_tokens=2).numel() == 0
    finally:
        hook.remove()
    assert len(calls) == 2


def test_an_own_loop_is_refused():
    model, prompt = model_of("llama"), text_prompt((60,))
    with (
        compress(model, CompressionConfig("oracle", budget=24, window=8)),
        torch.inference_mode(),
        pytest.raises(UnsupportedError, match=r"oracle.*first pass, which only generate makes"),
    ):
        model(**prompt.inputs)
