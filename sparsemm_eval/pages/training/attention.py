"""Causal attention for training on CPU: blocks of queries, matrix products in the weights' precision.

PyTorch's fused CPU kernel spends most of a training step in its backward pass when heads are this small;
here the probabilities are kept and the backward pass is five matrix products per block.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from sparsemm_eval import compat
from sparsemm_eval.errors import ConfigError

NAME = "tiny_reader_training"
_BLOCK = 64


class _BlockedCausal(torch.autograd.Function):
    """Softmax(Q K^T) V for q, k, v of [heads, N, D], q scaled beforehand."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        length = query.shape[1]
        outputs, probabilities = [], []
        for start in range(0, length, _BLOCK):
            end = min(start + _BLOCK, length)
            scores = query[:, start:end] @ key[:, :end].transpose(1, 2)
            future = torch.ones(end - start, end - start, dtype=torch.bool).triu(1)
            scores[:, :, start:].masked_fill_(future, float("-inf"))
            probabilities.append(scores.softmax(-1))
            outputs.append(probabilities[-1] @ value[:, :end])
        ctx.save_for_backward(query, key, value, *probabilities)
        return torch.cat(outputs, 1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value, *probabilities = ctx.saved_tensors
        to_query = []
        to_key, to_value = torch.zeros_like(key), torch.zeros_like(value)
        for number, share in enumerate(probabilities):
            start = number * _BLOCK
            end = start + share.shape[1]
            incoming = gradient[:, start:end]
            to_value[:, :end] += share.transpose(1, 2) @ incoming
            to_share = incoming @ value[:, :end].transpose(1, 2)
            to_score = compat.softmax_gradient(to_share, share)
            to_query.append(to_score @ key[:, :end])
            to_key[:, :end] += to_score.transpose(1, 2) @ query[:, start:end]
        return torch.cat(to_query, 1), to_key, to_value


def blocked_causal_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of query [B, H, N, D] over key and value [B, K, N, D], as transformers calls it.

    The output is [B, N, H, D]; `scaling` is D ** -0.5 by default. Rows are padded on the right only, so
    causality is mask enough.
    """
    if attention_mask is not None:
        raise ConfigError("attention_mask", tuple(attention_mask.shape), "None, and rows padded on the right")
    batch, heads, length, width = query.shape
    key, value = (
        part.repeat_interleave(heads // part.shape[1], dim=1).reshape(batch * heads, length, width)
        for part in (key, value)
    )
    query = (query * (width**-0.5 if scaling is None else scaling)).reshape(batch * heads, length, width)
    output = _BlockedCausal.apply(query, key, value)
    return output.view(batch, heads, length, width).transpose(1, 2), None


def use_training_attention(model: PreTrainedModel) -> None:
    """Let the text tower of a model train with blocked causal attention."""
    AttentionInterface.register(NAME, blocked_causal_attention)
    model.set_attn_implementation({"text_config": NAME})


def use_default_attention(model: PreTrainedModel) -> None:
    """Undo `use_training_attention`: PyTorch's attention, as for every loaded model."""
    model.set_attn_implementation({"text_config": "sdpa"})
