import pytest
from transformers import GenerationConfig

from sparsemm_eval.decode.choice import Choice
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.model_wrappers.answering.generation import Defaults, GenerationSettings


def parse(*of_user, **gen_kwargs):
    return GenerationSettings.parse(gen_kwargs, Defaults(128, seed=3, of_user=frozenset(of_user)))[0]


def test_defaults_are_greedy():
    settings = parse()
    assert not settings.samples
    assert settings.max_new_tokens == 128
    assert settings.repetition_penalty == 1.0


def test_gen_kwargs_are_left_as_they_are():
    given = {"until": ["\n"], "max_new_tokens": 4, "temperature": 0, "image_aspect_ratio": "original", "x": 1}
    before = dict(given)
    settings, unused = GenerationSettings.parse(given, Defaults(128))
    assert given == before
    assert settings.until == ("\n",)
    assert unused == ("x",)


@pytest.mark.parametrize(
    ("given", "temperature"),
    [
        ({"temperature": 0.7}, 0.7),
        ({"temperature": 0.7, "do_sample": False}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 0}, 0.0),
        ({"do_sample": False, "top_p": None}, 0.0),
    ],
)
def test_when_tokens_are_drawn(given, temperature):
    assert parse(**given).temperature == temperature


@pytest.mark.parametrize(
    ("of_user", "given", "temperature"),
    [
        (("temperature",), {"temperature": 0.7, "do_sample": False}, 0.7),
        (("temperature",), {"temperature": 0, "do_sample": True}, 0.0),
        (("do_sample",), {"temperature": 0.7, "do_sample": False}, 0.0),
        (("do_sample", "temperature"), {"temperature": 0.7, "do_sample": True}, 0.7),
    ],
)
def test_between_task_and_user_the_users_word_decides(of_user, given, temperature):
    assert parse(*of_user, **given).temperature == temperature


@pytest.mark.parametrize(
    ("of_user", "given", "message"),
    [
        (("do_sample",), {"temperature": 0, "do_sample": True}, "a number > 0 beside do_sample=true"),
        (
            ("do_sample", "temperature"),
            {"temperature": 0.7, "do_sample": False},
            "0, or none, beside do_sample=false",
        ),
        ((), {"do_sample": "sometimes"}, "do_sample='sometimes'"),
    ],
)
def test_what_contradicts_itself_is_refused(of_user, given, message):
    with pytest.raises(ConfigError, match=message):
        parse(*of_user, **given)


def test_greedy_settings_are_equal_whatever_the_sampling_knobs():
    assert parse(temperature=0, top_p=1.0) == parse(top_p=0.3, top_k=7) == parse()
    assert parse(temperature=1, top_p=0.3) != parse(temperature=1)


def test_the_seed_belongs_to_sampled_settings_only():
    assert parse().seed is None
    assert parse(temperature=1).seed == 3


@pytest.mark.parametrize(
    "given",
    [
        {"num_beams": 3},
        {"num_return_sequences": 2},
        {"temperature": -1},
        {"temperature": "hot"},
        {"top_p": 1.5},
        {"top_p": 0, "temperature": 1},
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.5},
        {"until": 3},
        {"until": [3]},
        {"repetition_penalty": 0},
    ],
)
def test_settings_that_cannot_work_are_refused(given):
    with pytest.raises(ConfigError) as caught:
        parse(**given)
    assert caught.value.argument in given


def test_until_forms():
    assert parse(until="ASSISTANT:").until == ("ASSISTANT:",)
    assert parse(until=["a", "", "b"]).until == ("a", "b")
    assert parse().until == ()


class _Tokenizer:
    eos_token_id, pad_token_id, bos_token_id = 5, None, 1


class _Model:
    generation_config = GenerationConfig(
        eos_token_id=[7, 8], repetition_penalty=1.3, temperature=0.01, top_k=1, do_sample=True, max_length=20
    )


def test_checkpoint_settings_do_not_leak_but_all_end_tokens_stay():
    config = parse().for_model(_Model, _Tokenizer)
    assert config.eos_token_id == [7, 8]
    assert config.pad_token_id == 7
    assert config.repetition_penalty == 1.0
    assert config.do_sample is False
    sampled = parse(temperature=0.5, repetition_penalty=1.1)
    assert sampled.choice == Choice(True, 0.5, 0, 1.0, by_row=True)
    assert sampled.for_model(_Model, _Tokenizer).do_sample is False  # rows draw from seeds of their own
    assert sampled.for_model(_Model, _Tokenizer).repetition_penalty == 1.1
