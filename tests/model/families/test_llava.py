import shutil
from pathlib import Path

import pytest
import torch

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.model.families.llava import context_prompt, messages_prompt
from tests.model.families.recording import inputs_of_ours, inputs_of_upstream
from tests.model.families.seven_tasks import FILES, image_of, question
from tests.model.families.upstream import ChatLlavaHf, SimpleLlavaHf
from tests.model_wrappers.helpers import wrapper_class

TEMPLATES = Path(__file__).parents[1] / "templates"
SETUPS = {
    "chat": ("llava_hf", ChatLlavaHf, wrapper_class("llava_fullkv"), True, None),
    "chat, Vicuna's template": (
        "llava_hf",
        ChatLlavaHf,
        wrapper_class("llava_fullkv"),
        True,
        "llava-v1.6-vicuna-7b-hf",
    ),
    "chat, Mistral's template": (
        "llava_hf",
        ChatLlavaHf,
        wrapper_class("llava_fullkv"),
        True,
        "llava-v1.6-mistral-7b-hf",
    ),
    "simple": ("llava_hf", SimpleLlavaHf, wrapper_class("llava_fullkv", simple=True), False, None),
    "simple, no template": (
        "llava_hf",
        SimpleLlavaHf,
        wrapper_class("llava_fullkv", simple=True),
        False,
        "none",
    ),
}


@pytest.fixture(scope="module", params=SETUPS)
def pair(request, checkpoints, tmp_path_factory):
    """Upstream's wrapper and ours on one checkpoint."""
    name, theirs, ours, chat, template = SETUPS[request.param]
    folder = tmp_path_factory.mktemp("llava") / "checkpoint"
    shutil.copytree(checkpoints["tiny-reader"], folder)
    if template == "none":
        (folder / "chat_template.jinja").unlink()
    elif template is not None:
        shutil.copy(TEMPLATES / f"{template}.jinja", folder / "chat_template.jinja")
    upstream = theirs(pretrained=str(folder), device="cpu", device_map="cpu", dtype="float32")
    return name, upstream, ours(pretrained=str(folder), device="cpu", journal="off"), chat


@pytest.mark.parametrize("task", FILES)
def test_inputs_equal_upstreams_for_the_seven_tasks(pair, task):
    name, upstream, ours, chat = pair
    for size in ((300, 200), (130, 390)):
        context, images, gen_kwargs = question(task, name, image_of(size))
        assert question(task, ours.model_name, image_of(size))[0] == context
        expected = inputs_of_upstream(upstream, context, images, gen_kwargs, chat)
        found, settings = inputs_of_ours(ours, context, images, gen_kwargs, chat)
        assert expected["pixel_values"].numel() > 0
        for key in ("input_ids", "attention_mask", "pixel_values", "image_sizes"):
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0)
        assert settings.max_new_tokens == expected["max_new_tokens"]
        assert settings.samples == expected["do_sample"]


def test_text_only_prompts_carry_no_image(pair):
    _, _, ours, chat = pair
    found, _ = inputs_of_ours(ours, "just a question", [], {}, chat)
    assert "pixel_values" not in found


def test_an_image_tag_in_the_question_is_not_doubled(checkpoints, build_wrapper):
    wrapper = build_wrapper("llava_fullkv", simple=True)
    prompt = context_prompt(wrapper.processor, "see <image> here", 1, None)
    assert prompt.count("<image>") == 1
    assert context_prompt(wrapper.processor, "compare", 2, None).count("<image> <image>\ncompare") == 1


class _Processor:
    """A processor with a published template; the tokenizer has it too, as saved checkpoints do."""

    def __init__(self, template):
        from transformers import PreTrainedTokenizerFast

        self.chat_template = template

        class Tokenizer(PreTrainedTokenizerFast):
            def __init__(self):
                from tokenizers import Tokenizer as Fast
                from tokenizers.models import WordLevel

                super().__init__(tokenizer_object=Fast(WordLevel({"a": 0}, unk_token="a")))

        self.tokenizer = Tokenizer()
        self.tokenizer.chat_template = template

    def apply_chat_template(self, messages, **kwargs):
        return self.tokenizer.apply_chat_template(messages, **kwargs)


MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]


@pytest.mark.parametrize(
    ("name", "expected", "with_system"),
    [
        (
            "llava-v1.6-vicuna-7b-hf",
            "USER: <image>\nWhat is it? ASSISTANT:",
            "Be brief. USER: <image>\nWhat is it? ASSISTANT:",
        ),
        (
            "llava-v1.6-mistral-7b-hf",
            "[INST] <image>\nWhat is it? [/INST]",
            "<<SYS>>\nBe brief.\n<</SYS>>\n\n[INST] <image>\nWhat is it? [/INST]",
        ),
    ],
)
def test_published_templates(name, expected, with_system):
    processor = _Processor((TEMPLATES / f"{name}.jinja").read_text())
    assert messages_prompt(processor, MESSAGES, None) == expected
    assert messages_prompt(processor, MESSAGES, "Be brief.") == with_system
    with pytest.raises(UnsupportedError, match="leave out"):
        context_prompt(processor, "What is it?", 1, None)


def test_without_template_the_chat_protocol_is_refused_and_the_simple_one_speaks_vicuna():
    processor = _Processor(None)
    with pytest.raises(UnsupportedError, match="--force_simple"):
        messages_prompt(processor, MESSAGES, None)
    assert context_prompt(processor, "What is it?", 1, None) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions. "
        "USER: <image>\nWhat is it? ASSISTANT:"
    )
    assert context_prompt(processor, "Hm?", 0, "Be brief.") == "Be brief. USER: Hm? ASSISTANT:"
