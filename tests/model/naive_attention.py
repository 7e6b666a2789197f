"""A decoder run whose attention is loops: every KV head's evicted prompt positions are skipped one by one.

Independent of the package's cache, kernel and hooks: a dense DynamicCache and its own attention function.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from tests import reference

NAME = "naive_reference"


class NaiveAttention:
    """Attention of a batch-1 run; ``kept[layer]`` [K] positions are set from the prefill's own q and k."""

    def __init__(self, config=None, layers=0, scores=None):
        self.config, self.layers, self.scores = config, layers, scores
        self.kept, self.queries, self.keys = {}, {}, {}

    def __call__(self, module, query, key, value, attention_mask, scaling=None, **kwargs):
        layer, prompt = module.layer_idx, query.shape[2]
        if layer not in self.kept:
            self.queries[layer], self.keys[layer] = query.clone(), key.clone()
            if self.config is not None:
                self.kept[layer] = reference.kept_positions(
                    self.config, layer, self.layers, query[0], key[0], self.scores
                )
            group = query.shape[1] // key.shape[1]
            expanded = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
            output = torch.nn.functional.scaled_dot_product_attention(
                query, *expanded, is_causal=prompt > 1, scale=scaling
            )
            self.prompt = prompt
            return output.transpose(1, 2), None
        group = query.shape[1] // key.shape[1]
        output = torch.zeros(1, 1, query.shape[1], query.shape[3])
        for head in range(query.shape[1]):
            kv_head = head // group
            positions = [*self.kept[layer][kv_head], *range(self.prompt, key.shape[2])]
            output[0, 0, head] = reference.attend(
                query[0, head, 0], key[0, kv_head, positions], value[0, kv_head, positions], scaling
            )
        return output, None


@contextmanager
def naive_attention(model, attention):
    """Run the text decoder with this attention inside a ``with`` block."""
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
