import torch
from transformers import LlamaConfig

from sparsemm_eval.model.flops import prefill_flops


def test_hand_numbers():
    config = LlamaConfig(hidden_size=4, num_attention_heads=2, num_key_value_heads=1, intermediate_size=8)
    weights = 4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 8  # q, k and v, o, feed-forward
    one = 2 * weights * 5 + 2 * 2 * 2 * 25
    assert prefill_flops(torch.tensor([[5, 0]]), config).tolist() == [one, 0]
    assert prefill_flops(torch.tensor([[5], [5], [0]]), config).tolist() == [2 * one]


def test_a_released_model_in_round_numbers():
    """LLaVA-NeXT-Vicuna-7B: 6.5 billion weights in its layers, so 37 TFLOP for 2,880 tokens and attention."""
    config = LlamaConfig(num_attention_heads=32, num_key_value_heads=32, intermediate_size=11008)
    (flops,) = prefill_flops(torch.full((32, 1), 2880), config).tolist()
    assert abs(flops / 1e12 - (2 * 6.476 * 2.880 + 2 * 32 * 4096 * 2880**2 / 1e12)) < 0.1
