import pytest

from sparsemm_eval.config import setting_names
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.methods import method_named
from sparsemm_eval.model.families.llava import FAMILY as LLAVA
from sparsemm_eval.model.families.qwen2vl import FAMILY as QWEN2VL
from sparsemm_eval.model_wrappers.arguments import Arguments

SNAPKV = method_named("snapkv")


def parse(family=LLAVA, **given):
    return Arguments.parse(given, "llava_snapkv", family)


def test_defaults():
    arguments = parse()
    assert arguments.pretrained == "llava-hf/llava-v1.6-vicuna-7b-hf"
    assert arguments.batch_size == 1
    assert arguments.compression(SNAPKV).method == "snapkv"
    assert parse(family=QWEN2VL).pretrained == "Qwen/Qwen2-VL-7B-Instruct"


def test_every_knob_is_a_model_arg():
    knobs = {"budget", "window", "score", "ratio", "kernel_size", "pooling", "gqa", "surplus", "head_scores"}
    assert knobs <= set(setting_names()) <= set(Arguments.names())
    config = parse(budget=300, window=16, ratio=0, pooling="max", seed=3).compression(method_named("random"))
    assert (config.budget, config.window, config.ratio, config.pooling, config.seed) == (300, 16, 0, "max", 3)
    assert config.method == "random"


@pytest.mark.parametrize("value", [None, "None", "none", "null", ""])
def test_none_like_values_mean_not_given(value):
    arguments = parse(
        pretrained=value, dtype=value, budget=value, max_pixels=value, max_batch_size=value, method=value
    )
    assert arguments == parse()


def test_numbers_may_arrive_as_text_or_as_whole_floats():
    assert parse(budget="128", batch_size=4.0).knobs["budget"] == 128
    assert parse(batch_size="4").batch_size == 4
    assert parse(revision=1234567).revision == "1234567"


def test_booleans_of_journal_mean_on_and_off():
    assert parse(journal=False).journal == "off"
    assert parse(journal=True).journal == "auto"


def test_a_home_folder_is_found(monkeypatch):
    monkeypatch.setenv("HOME", "/home/us")
    names = ("pretrained", "journal", "stats_dir", "reference", "system_prompt")
    found = parse(**dict.fromkeys(names, "~/x"))
    assert {getattr(found, name) for name in names} == {"/home/us/x"}


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("batch_size", "auto", "an integer >= 1"),
        ("batch_size", 0, "an integer >= 1"),
        ("batch_size", True, "an integer >= 1"),
        ("batch_size", 1.5, "an integer >= 1"),
        ("dtype", "int8", "bfloat16"),
        ("on_error", "ignore", "raise, skip"),
        ("max_skipped", 1.5, r"\[0, 1\]"),
        ("max_skipped", float("nan"), r"\[0, 1\]"),
        ("attn_implementation", "eager", "sdpa"),
        ("max_pixels", 100, "fixed image sizes"),
        ("method", "adakv", "the model name 'llava_snapkv' fixes it"),
        ("max_batch_size", 8, "batch_size"),
        ("pretrained", True, "text"),
    ],
)
def test_errors_name_argument_value_and_remedy(name, value, remedy):
    with pytest.raises(ConfigError, match=remedy) as caught:
        parse(**{name: value})
    assert caught.value.argument == name
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"budget": 32, "window": 32},
        {"budget": -5.0},
        {"budget": True},
        {"budget": "many"},
        {"ratio": 1.5},
        {"ratio": -0.1},
        {"kernel_size": 4},
        {"pooling": "median"},
        {"window": 0},
        {"seed": 1},
        {"mask_ratio": 0.1},
        {"sinks": 2},
        {"score": "attention"},
    ],
)
def test_knobs_out_of_range_are_refused(given):
    with pytest.raises(ConfigError):
        parse(**given).compression(SNAPKV)


def test_unknown_names_get_the_list_and_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'budget'") as caught:
        parse(bugdet=128)
    assert "kernel_size" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        parse(xyzzy=1)
    assert "did you mean" not in str(caught.value)


def test_mask_arguments_belong_to_the_mask_names():
    given = parse(mask_ratio=0.02, mask_mode="output", mask_seed="3")
    config = given.compression(method_named("mask_random"))
    assert (config.mask_ratio, config.mask_mode, config.mask_seed) == (0.02, "output", 3)
    for value in (0, 1, 1.5, "half"):
        with pytest.raises(ConfigError, match=r"\(0, 1\)"):
            parse(mask_ratio=value).compression(method_named("mask"))


def test_without_a_family_there_must_be_a_checkpoint():
    with pytest.raises(ConfigError, match=r"pretrained=None.*takes its family"):
        parse(family=None)
    assert parse(family=None, pretrained="tiny-reader").pretrained == "tiny-reader"


def test_pixel_limits_belong_to_qwen2vl():
    assert parse(family=QWEN2VL, max_pixels=100352).max_pixels == 100352
