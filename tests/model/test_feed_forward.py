"""Feed-forward layers see long prompts in parts, with the same result."""

import pytest
import torch

from sparsemm_eval import compress
from sparsemm_eval.model import feed_forward
from sparsemm_eval.model.text_decoder import find_text_decoder
from tests.model.test_session import config_of
from tests.tiny_models import FAMILIES, generate, model_of, prompt_of


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_answers_in_small_parts(family, monkeypatch):
    model, prompt = model_of(family), prompt_of(family, (150, 90))
    decoder, sizes = find_text_decoder(model), []
    assert len(decoder.feed_forwards) == decoder.num_layers
    truth = generate(model, prompt.inputs)
    hooks = [
        module.down_proj.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[:2].numel()))
        for module in decoder.feed_forwards
    ]
    monkeypatch.setattr(feed_forward.in_parts.__wrapped__, "__defaults__", (64,))
    try:
        with compress(model, config_of("fullkv", model)):
            assert torch.equal(generate(model, prompt.inputs), truth)
    finally:
        for hook in hooks:
            hook.remove()
    assert max(sizes) <= 64
    assert not any("forward" in vars(module) for module in decoder.feed_forwards)


@torch.no_grad()
def test_a_shadowed_forward_comes_back():
    module = torch.nn.Linear(4, 4)
    own = module.forward
    module.forward = own
    with feed_forward.in_parts([module], tokens=3):
        assert module.forward is not own
        hidden = torch.randn(2, 7, 4)
        torch.testing.assert_close(module(hidden), own(hidden))
    assert module.forward is own
