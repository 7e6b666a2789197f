import json
import shutil
from pathlib import Path

import pytest
import torch
from lmms_eval.models.model_utils.media_encoder import encode_image_to_data_url

from sparsemm_eval.model.families.qwen2vl import FAMILY as QWEN2VL
from tests.model.families.recording import inputs_of_ours, inputs_of_upstream
from tests.model.families.seven_tasks import FILES, image_of, question
from tests.model.families.upstream import Qwen2_VL
from tests.model_wrappers.helpers import wrapper_class

TEMPLATES = Path(__file__).parents[1] / "templates"
KEYS = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")


class LosslessQwen2VL(Qwen2_VL):
    """Upstream's wrapper but for its JPEG re-encoding."""

    def _encode_image_data_url(self, image):
        return encode_image_to_data_url(image, image_format="PNG", mime_type="image/png", convert_rgb=True)


@pytest.fixture(scope="module", params=["own", "published"])
def pair(request, checkpoints, tmp_path_factory):
    """Upstream's wrapper and ours on a checkpoint with patches of 14 pixels, as the released ones have."""
    folder = tmp_path_factory.mktemp("qwen2vl") / "checkpoint"
    shutil.copytree(checkpoints["tiny-reader-qwen2vl"], folder)
    path = folder / "processor_config.json"
    config = json.loads(path.read_text())
    config["image_processor"]["patch_size"] = 14
    path.write_text(json.dumps(config))
    if request.param == "published":
        shutil.copy(TEMPLATES / "qwen2-vl-7b-instruct.jinja", folder / "chat_template.jinja")
    upstream = LosslessQwen2VL(pretrained=str(folder), device="cpu", device_map="cpu")
    return upstream, wrapper_class("qwen2vl_fullkv")(
        pretrained=str(folder), device="cpu", dtype="auto", journal="off"
    )


@pytest.mark.parametrize("task", FILES)
def test_inputs_equal_upstreams_for_the_seven_tasks(pair, task):
    upstream, ours = pair
    for size in ((300, 200), (1200, 900), (30, 40)):
        context, images, gen_kwargs = question(task, "qwen2_vl", image_of(size))
        assert question(task, ours.model_name, image_of(size))[0] == context
        expected = inputs_of_upstream(upstream, context, images, gen_kwargs, chat=False)
        found, settings = inputs_of_ours(ours, context, images, gen_kwargs, chat=False)
        for key in KEYS:
            torch.testing.assert_close(found[key], expected[key].to(found[key].dtype), rtol=0, atol=0)
        assert settings.max_new_tokens == expected["max_new_tokens"]
        assert settings.samples == expected["do_sample"]


def test_published_template(pair):
    _, ours = pair
    prompt = QWEN2VL.context_prompt(ours.processor, "<image>What is it?", 1, None)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "<|im_start|>system\nBe brief.<|im_end|>" in QWEN2VL.context_prompt(
        ours.processor, "x", 0, "Be brief."
    )


def test_pixel_limits_bound_the_image(build_wrapper):
    wrapper = build_wrapper("qwen2vl_fullkv", max_pixels=65536)
    prepared = QWEN2VL.prepare_image(
        image_of((800, 600)), wrapper.processor, wrapper._loop.reader.pixel_limits
    )
    assert prepared.width * prepared.height <= 65536
    assert prepared.width % 16 == prepared.height % 16 == 0
