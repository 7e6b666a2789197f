"""The attention function and mask that a model runs with while it is compressed.

Registered with transformers under one name. The function receives post-RoPE queries and, through a hook on
the attention module, the cache layer they belong to.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from sparsemm_eval.cache.ragged_cache import RaggedLayer

# transformers tests attention names for "sdpa", "flash" and "flex_attention" as substrings
ATTENTION = "sparsemm_ragged"
STATIC_ATTENTION = "sparsemm_static"  # the same for caches of fixed shape, whose decode steps have no mask


def register() -> None:
    """Make the attention function known to transformers; doing it again changes nothing."""
    AttentionInterface.register(ATTENTION, ragged_attention_forward)
    # a name without a mask function gets no mask at all, which would be wrong for left-padded rows
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    AttentionInterface.register(STATIC_ATTENTION, ragged_attention_forward)
    AttentionMaskInterface.register(STATIC_ATTENTION, prefill_mask)


def prefill_mask(*, q_length: int, **kwargs: Any) -> torch.Tensor | None:
    """SDPA's mask for prompts; none for single tokens, since padding is never stored."""
    return None if q_length == 1 else sdpa_mask(q_length=q_length, **kwargs)


def ragged_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    kv_layer: RaggedLayer | None = None,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Prefill: SDPA, then the layer compresses itself. Decode: attention over what the layer kept.

    The layer before image tokens are pruned ranks them: here alone are its queries and keys.

    Parameters
    ----------
    query : torch.Tensor
        [B, H, T, D] after RoPE.
    key, value : torch.Tensor
        [B, K, N, D], what the cache layer's ``update`` returned.
    attention_mask : torch.Tensor, optional
        bool [B, 1, T, N].
    kv_layer : RaggedLayer, optional
        None where the model runs without a cache.

    Returns
    -------
    tuple
        [B, T, H, D] and None.
    """
    if kv_layer is not None and kv_layer.is_prefilled and not kv_layer.is_dense:
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        return kv_layer.attend(query, key, value, scaling), None
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if kv_layer is not None and not kv_layer.is_prefilled:
        valid = None if attention_mask is None else attention_mask[:, 0, -1, :]
        pruned = kv_layer.shared.pruned
        if pruned is not None and pruned.layer == kv_layer.layer + 1:
            pruned.decide(query[:, :, -1], key, valid, scaling)
        weight = module.o_proj.weight if "output_weight" in kv_layer.shared.config.needs else None
        kv_layer.compress(query, valid, scaling, weight)
    return output, None
