import shutil

import pytest
from accelerate import dispatch_model

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.model.checkpoint import local_fingerprint
from tests.model_wrappers.helpers import answers_of


def test_a_checkpoint_that_does_not_exist(build_wrapper, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"tiny-reader.*Hub id") as caught:
        build_wrapper(pretrained="no/such-checkpoint")
    assert caught.value.argument == "pretrained"
    with pytest.raises(ConfigError, match="Hub id"):
        build_wrapper(pretrained="/no/such/folder")


def test_a_checkpoint_of_another_family(build_wrapper, checkpoints):
    with pytest.raises(ConfigError, match=r"a LLaVA-NeXT checkpoint.*qwen2_vl"):
        build_wrapper(pretrained=checkpoints["tiny-reader-qwen2vl"])
    with pytest.raises(ConfigError, match=r"a Qwen2-VL checkpoint.*llava_next"):
        build_wrapper("qwen2vl_fullkv", pretrained=checkpoints["tiny-reader"])


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json", "tokenizer.json"])
def test_an_incomplete_checkpoint(build_wrapper, checkpoints, tmp_path, missing):
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoints["tiny-reader"], folder)
    (folder / missing).unlink()
    with pytest.raises(ConfigError, match="pretrained"):
        build_wrapper(pretrained=str(folder))


def test_pixel_limits(build_wrapper):
    wrapper = build_wrapper("qwen2vl_fullkv", max_pixels=100000)
    assert wrapper.identity["pixel_limits"] == {"min_pixels": 3136, "max_pixels": 100000}
    assert dict(wrapper.processor.image_processor.size)["longest_edge"] == 100000
    with pytest.raises(ConfigError, match="max_pixels"):
        build_wrapper("qwen2vl_fullkv", max_pixels=100)


def test_a_model_in_parts_answers_as_one(build_wrapper, documents):
    expected = answers_of(build_wrapper("llava_snapkv", budget=40, window=8), documents)
    by_map = build_wrapper(
        "llava_snapkv", budget=40, window=8, device=None, device_map="auto", dtype="float32"
    )
    assert answers_of(by_map, documents) == expected
    dispatched = build_wrapper("llava_snapkv", budget=40, window=8)
    layers = {f"model.language_model.layers.{layer}": "cpu" for layer in range(6)}
    rest = ("model.vision_tower", "model.multi_modal_projector", "model.image_newline", "lm_head")
    text = ("embed_tokens", "norm", "rotary_emb")
    parts = {**layers, **dict.fromkeys(rest, "cpu")}
    parts |= {f"model.language_model.{name}": "cpu" for name in text}
    dispatch_model(dispatched.model, parts, force_hooks=True)
    assert answers_of(dispatched, documents) == expected


def test_the_fingerprint_without_loading_is_that_of_a_run(build_wrapper, checkpoints):
    folder = checkpoints["tiny-reader"]
    assert local_fingerprint(folder) == build_wrapper(pretrained=folder).identity["checkpoint"]
    assert local_fingerprint("llava-hf/llava-v1.6-vicuna-7b-hf") is None
