"""Images that are encoded before generate."""

import weakref
from contextlib import contextmanager

import pytest
import torch

from sparsemm_eval import CompressionConfig, compress
from sparsemm_eval.model.encoded_images import with_encoded_images
from tests.tiny_models import IMAGE_FAMILIES, generate, model_of, prompt_of, text_prompt

VISION_LAYERS = ("CLIPEncoderLayer", "Qwen2VLVisionBlock")
CONFIG = CompressionConfig("snapkv", budget=24, window=8)


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_encoded_images_give_the_same_tokens(family):
    model, prompt = model_of(family), prompt_of(family, (1, 1, 1))
    for inputs in (prompt.inputs, prompt.rows[1]):
        encoded = with_encoded_images(model, inputs)
        assert "pixel_values" in inputs
        assert "pixel_values" not in encoded
        assert torch.equal(generate(model, encoded), generate(model, inputs))


def test_text_models_and_text_prompts_stay_as_they_are():
    inputs = text_prompt((40,)).inputs
    assert with_encoded_images(model_of("llama"), inputs) is inputs
    assert with_encoded_images(model_of("tiny-reader"), inputs) is inputs


@contextmanager
def counted_states(model):
    """How many of the vision layers' outputs are alive after each decode step, as a list."""
    states, alive = [], []

    def note(module, args, output):
        states.extend(weakref.ref(x) for x in (output if isinstance(output, tuple) else (output,)))

    def count(module, args, output):
        if output.past_key_values.get_seq_length() > output.logits.shape[1]:
            alive.append(sum(ref() is not None for ref in states))

    vision = [module for module in model.modules() if type(module).__name__ in VISION_LAYERS]
    hooks = [module.register_forward_hook(note) for module in vision]
    hooks.append(model.register_forward_hook(count))
    try:
        yield alive
    finally:
        for hook in hooks:
            hook.remove()
    assert len(states) >= len(vision) >= 2


@pytest.mark.parametrize("decode", ["eager", "compile", "graph"])
@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_no_vision_hidden_state_lives_through_decoding(family, decode):
    model, prompt = model_of(family), prompt_of(family)
    with compress(model, CONFIG, decode=decode), counted_states(model) as alive, torch.inference_mode():
        model.generate(**prompt.rows[0], max_new_tokens=4, do_sample=False)
    assert len(alive) >= 3
    assert max(alive) == 0


def test_they_would_live_without_it():
    model, prompt = model_of("tiny-reader"), prompt_of("tiny-reader")
    with counted_states(model) as alive, torch.inference_mode():
        model.generate(**prompt.rows[0], max_new_tokens=4, do_sample=False)
    assert max(alive) > 0
