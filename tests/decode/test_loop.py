"""The own loop against ``generate``."""

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from sparsemm_eval import CompressionConfig, compress
from sparsemm_eval.decode import loop
from sparsemm_eval.decode.step import CHECK_EVERY
from sparsemm_eval.errors import ConfigError, UnsupportedError
from tests.methods.matrix import EVICTING
from tests.model.test_session import BATCH, config_of
from tests.tiny_models import FAMILIES, PAD, answer, generate, model_of, prompt_of, text_prompt


def both(model, config, inputs, decode="graph", seed=None, **settings):
    """Tokens of eager decoding and of another mode, and their statistics."""
    results = []
    for mode in ("eager", decode):
        with compress(model, config, decode=mode) as session, torch.inference_mode():
            if seed is not None:
                torch.manual_seed(seed)
            tokens = model.generate(**inputs, **{"max_new_tokens": 13, "do_sample": False, **settings})
        results += [tokens, session.stats]
    return results


def same(model, config, inputs, decode="graph", **settings):
    truth, stats, ours, our_stats = both(model, config, inputs, decode, **settings)
    assert torch.equal(ours, truth)
    assert our_stats.generated == stats.generated
    assert torch.equal(our_stats.kept, stats.kept)
    return truth


TIE = 1e-4  # of logits: sums in another order differ by some 1e-6, so that less than this may go either way


def compared(tokens, truth, logits):
    """How many tokens agree, and how many are decided beyond rounding: [B] each."""
    best = torch.stack(logits, dim=1).topk(2).values  # [B, T, 2]
    decided = ((best[..., 0] - best[..., 1]) > TIE).long().cumprod(1).sum(1)
    return (tokens == truth).long().cumprod(1).sum(1), decided


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["fullkv", "snapkv", "sparsemm"])
@pytest.mark.parametrize("decode", ["graph", "compile"])
def test_the_same_tokens_alone_and_in_a_batch(family, method, decode):
    model, prompt = model_of(family), prompt_of(family, BATCH)
    config = config_of(method, model)
    both = prompt.inputs, prompt.rows[1]
    with compress(model, config):
        truths = [answer(model, inputs) for inputs in both]
    most = 0
    with compress(model, config, decode=decode) as session, torch.inference_mode():
        for inputs, (truth, logits) in zip(both, truths, strict=True):
            tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
            agree, decided = compared(tokens[:, inputs["input_ids"].shape[1] :], truth, logits)
            assert bool((agree >= decided).all())
            most = max(most, int(decided.max()))
            assert session.stats.generated == 11
            assert session.stats.decode_seconds_per_step > 0
    assert most == 12


@pytest.mark.parametrize("family", ["mistral", "tiny-reader-qwen2vl"])
@pytest.mark.parametrize("method", EVICTING)
def test_every_method(family, method):
    model, prompt = model_of(family), prompt_of(family, BATCH)
    more = {"headkv_per": "query_head"} if method == "headkv" else {}
    same(model, config_of(method, model, **more), prompt.inputs)


@pytest.mark.parametrize("tokens", [1, 2, CHECK_EVERY, CHECK_EVERY + 1, CHECK_EVERY + 2])
def test_any_number_of_tokens(tokens):
    model, prompt = model_of("llama"), text_prompt((60, 40))
    truth = same(model, config_of("snapkv", model), prompt.inputs, max_new_tokens=tokens)
    assert truth.shape[1] == 60 + tokens


def test_a_total_length_and_a_generation_config():
    model, prompt = model_of("llama"), text_prompt((60,))
    config = config_of("snapkv", model)
    same(model, config, prompt.inputs, max_new_tokens=None, max_length=71)
    settings = type(model.generation_config)(max_new_tokens=5, do_sample=False, pad_token_id=PAD)
    with compress(model, config) as session:
        truth = model.generate(**prompt.inputs, generation_config=settings)
    with compress(model, config, decode="graph") as session:
        assert torch.equal(model.generate(**prompt.inputs, generation_config=settings), truth)
    assert session.stats.generated == 4


def test_more_tokens_than_the_first_room(monkeypatch):
    monkeypatch.setattr(loop, "FIRST_ROOM", 10)
    model, prompt = model_of("mistral"), text_prompt((60, 40))
    for method in ("fullkv", "adakv"):
        same(model, config_of(method, model), prompt.inputs, max_new_tokens=150)


@pytest.mark.parametrize("count", [1, 2])
def test_rows_end_at_any_of_several_end_tokens(count):
    model, prompt = model_of("llama"), text_prompt((60, 50, 40))
    config = config_of("snapkv", model)
    with compress(model, config):
        free = generate(model, prompt.inputs, tokens=30)
    ends = [int(free[0, 5]), int(free[1, 12]), int(free[2, 2])][: count + 1]
    truth = same(model, config, prompt.inputs, max_new_tokens=30, eos_token_id=ends)
    assert bool((truth[:, 60:] == PAD).any())
    if count == 2:
        assert truth.shape[1] < 90  # all rows ended, and what was generated behind that is gone


class EndsAfter(StoppingCriteria):
    """Ends a row when a token occurred, as stop texts do."""

    def __init__(self, token, prompt_tokens):
        self.token, self.prompt_tokens = token, prompt_tokens

    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids[:, self.prompt_tokens :] == self.token).any(-1)


@pytest.mark.parametrize("ends", [None, [96]])
def test_further_stopping_criteria(ends):
    model, prompt = model_of("llama"), text_prompt((60, 40))
    config = config_of("snapkv", model)
    with compress(model, config):
        free = generate(model, prompt.inputs, tokens=30)
    row = free[1].tolist()
    last = next(index for index in range(3, 30) if row[index] not in row[:index])
    stop = StoppingCriteriaList([EndsAfter(row[last], 60)])
    alone = {name: tensor[1:] for name, tensor in prompt.inputs.items()}
    for inputs in (prompt.inputs, alone):
        truth = same(model, config, inputs, max_new_tokens=30, stopping_criteria=stop, eos_token_id=ends)
    assert truth.shape[1] == 60 + last + 1


@pytest.mark.parametrize(
    "rules",
    [
        {"temperature": 0.7, "top_k": 0},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.8, "top_k": 0},
        {"temperature": 0.9, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.4},
    ],
)
def test_sampling_draws_the_tokens_of_generate(rules):
    model, prompt = model_of("qwen2"), text_prompt((60, 40))
    config = config_of("sparsemm", model)
    draws = [same(model, config, prompt.inputs, seed=seed, do_sample=True, **rules) for seed in (1, 2)]
    assert not torch.equal(*draws)


def test_repetition_penalty_without_sampling():
    model, prompt = model_of("llama"), text_prompt((60, 40))
    config = config_of("snapkv", model)
    plain = same(model, config, prompt.inputs, max_new_tokens=20)
    assert not torch.equal(
        same(model, config, prompt.inputs, max_new_tokens=20, repetition_penalty=1.8), plain
    )


def test_samples_of_any_length_follow_each_other_in_one_arena():
    model = model_of("llama")
    config = config_of("fullkv", model)
    lengths = ((40,), (150,), (90, 30), (20, 20, 10), (60,), (150,))
    prompts = [text_prompt(length, seed) for seed, length in enumerate(lengths)]
    truths = [generate(model, prompt.inputs) for prompt in prompts]
    with compress(model, config, decode="graph") as session, torch.inference_mode():
        held = []
        for prompt, truth in zip(prompts, truths, strict=True):
            tokens = model.generate(**prompt.inputs, max_new_tokens=12, do_sample=False)
            assert torch.equal(tokens[:, prompt.inputs["input_ids"].shape[1] :], truth)
            held.append((session.arena.nbytes, session.arena.stores[0].keys.data_ptr()))
    sizes = [size for size, _ in held]
    assert sizes == sorted(sizes)
    assert held[3:] == [held[3]] * 3  # nothing smaller moves it
    assert held[0] < held[1]


def test_inference_mode_or_not_makes_no_difference_to_a_session():
    model, prompt = model_of("llama"), text_prompt((60,))
    with compress(model, config_of("snapkv", model), decode="graph"):
        with torch.inference_mode():
            first = model.generate(**prompt.inputs, max_new_tokens=12)
        assert torch.equal(model.generate(**prompt.inputs, max_new_tokens=12), first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 3}, "num_beams=3"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences=2"),
        ({"no_repeat_ngram_size": 2}, "no_repeat_ngram_size=2"),
        ({"min_new_tokens": 3}, "min_new_tokens=3"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate=True"),
        ({"min_p": 0.1, "do_sample": True}, "min_p=0.1"),
        ({"typical_p": 0.9, "do_sample": True}, "typical_p=0.9"),
        ({"stop_strings": ["x"]}, "stop_strings"),
        ({"max_time": 5.0}, "max_time=5.0"),
        ({"inputs_embeds": torch.zeros(1, 3, 64), "input_ids": None}, "input_ids=None"),
    ],
)
def test_what_the_loop_does_not_do_is_refused(arguments, message):
    model, prompt = model_of("llama"), text_prompt((60,))
    with (
        compress(model, config_of("snapkv", model), decode="graph"),
        pytest.raises(UnsupportedError, match=message),
    ):
        model.generate(**{**prompt.inputs, "max_new_tokens": 4, **arguments})


def test_settings_that_do_nothing_are_taken():
    model, prompt = model_of("llama"), text_prompt((60,))
    nothing = {
        "num_beams": 1,
        "num_return_sequences": 1,
        "typical_p": 1.0,
        "min_length": 0,
        "output_scores": False,
        "output_attentions": False,
        "length_penalty": 2.0,
        "bos_token_id": 3,
    }
    expected = same(model, config_of("snapkv", model), prompt.inputs, max_new_tokens=6)
    assert torch.equal(
        same(model, config_of("snapkv", model), prompt.inputs, max_new_tokens=6, **nothing), expected
    )


def test_unknown_modes_and_several_devices_are_refused():
    model = model_of("llama")
    config = CompressionConfig("fullkv")
    with pytest.raises(ConfigError, match="decode='fast'"):
        compress(model, config, decode="fast")
    with pytest.raises(ConfigError, match="kernel='cuda'"):
        compress(model, config, kernel="cuda")
    model.hf_device_map = {"model": "cuda:0", "lm_head": "cuda:1"}
    try:
        with pytest.raises(UnsupportedError, match="several devices"):
            compress(model, config, decode="graph")
        compress(model, config)
    finally:
        del model.hf_device_map
