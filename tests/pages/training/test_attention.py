import pytest
import torch
from torch.nn import functional as F

from sparsemm_eval.pages.readers.registry import build
from sparsemm_eval.pages.training.attention import (
    NAME,
    blocked_causal_attention,
    use_default_attention,
    use_training_attention,
)


@pytest.mark.parametrize("length", [1, 63, 64, 150])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_equals_pytorch_forward_and_backward(length, kv_heads):
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, 4, length, 8), (2, kv_heads, length, 8), (2, kv_heads, length, 8)]
    ours = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    theirs = [part.detach().clone().requires_grad_() for part in ours]
    output, weights = blocked_causal_attention(None, *ours)
    expected = F.scaled_dot_product_attention(*theirs, is_causal=True, enable_gqa=True).transpose(1, 2)
    assert weights is None
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    incoming = torch.randn(expected.shape, generator=generator)
    output.backward(incoming)
    expected.backward(incoming)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our.grad, their.grad, atol=1e-5, rtol=1e-5)


def test_a_mask_is_refused():
    part = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="attention_mask"):
        blocked_causal_attention(None, part, part, part, torch.zeros(1, 1, 2, 2))


def test_training_attention_can_be_undone():
    model, _ = build("tiny-reader")
    use_training_attention(model)
    assert model.config.text_config._attn_implementation == NAME
    assert model.config.vision_config._attn_implementation == "sdpa"
    use_default_attention(model)
    assert model.config.text_config._attn_implementation == "sdpa"
