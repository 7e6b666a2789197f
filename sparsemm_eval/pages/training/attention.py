"""Causal attention for training on CPU: blocks of queries, matrix products in the weights' precision.

PyTorch's fused CPU kernel spends most of a training step in its backward pass when heads are this small;
here the probabilities are kept and the backward pass is five matrix products per block.
"""

import torch

from sparsemm_eval import compat

NAME = "tiny_reader_training"
_BLOCK = 64


class _BlockedCausal(torch.autograd.Function):
    """Softmax(Q K^T) V for q, k, v of [heads, N, D], q scaled beforehand."""

    @staticmethod
    def forward(ctx, query, key, value):
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
    def backward(ctx, gradient):
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


def blocked_causal_attention(module, query, key, value, attention_mask=None, scaling=None, **_):
    """Attention function with the signature of transformers.

    Parameters
    ----------
    module : torch.nn.Module
        Unused.
    query : tensor, [B, H, N, D]
    key, value : tensor, [B, K, N, D]
        H a multiple of K.
    attention_mask : None
        Rows are padded on the right only, so causality is mask enough.
    scaling : float, optional
        Factor of the scores, by default D ** -0.5.

    Returns
    -------
    (tensor [B, N, H, D], None)
    """
    if attention_mask is not None:
        raise ValueError("attention_mask is given, but training attention has none; pad rows on the right")
    batch, heads, length, width = query.shape
    key, value = (
        part.repeat_interleave(heads // part.shape[1], dim=1).reshape(batch * heads, length, width)
        for part in (key, value)
    )
    query = (query * (width**-0.5 if scaling is None else scaling)).reshape(batch * heads, length, width)
    output = _BlockedCausal.apply(query, key, value)
    return output.view(batch, heads, length, width).transpose(1, 2), None


def use_training_attention(model):
    """Let the text tower of a model train with blocked causal attention."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, blocked_causal_attention)
    model.set_attn_implementation({"text_config": NAME})


def use_default_attention(model):
    """Undo `use_training_attention`: PyTorch's attention, as for every loaded model."""
    model.set_attn_implementation({"text_config": "sdpa"})
