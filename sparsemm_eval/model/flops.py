"""An estimate of what a prompt costs: floating-point operations of the text model's layers."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig


def prefill_flops(lengths: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """Two operations per weight and token, and causal attention's two products.

    The vision tower, the embedding and the last token's logits are left out: pruning changes none of them.

    Parameters
    ----------
    lengths : torch.Tensor
        int64 [L, B]: prompt tokens that every layer is given.
    config : PreTrainedConfig
        Of a text model with gated feed-forward layers, as Llama, Mistral and Qwen2 are.

    Returns
    -------
    torch.Tensor
        int64 [B].
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    dim = getattr(config, "head_dim", None) or hidden // heads
    projections = 2 * hidden * dim * (heads + config.num_key_value_heads)  # q and o, k and v
    weights = projections + 3 * hidden * config.intermediate_size
    # each token meets half of the others in the mean: 2 products x 2 operations x N^2 / 2
    attention = 2 * heads * dim * lengths * lengths
    return (2 * weights * lengths + attention).sum(0)
