"""A decoder run whose attention is loops: every KV head's evicted prompt positions are skipped one by one.

Independent of the package's cache, kernel and hooks: a dense DynamicCache and its own attention function.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from sparsemm_eval.methods import PromptView
from tests import reference

NAME = "naive_reference"


class NaiveAttention:
    """Attention of a batch-1 run; what is kept follows from the prefill's own tensors.

    ``known`` holds what views have beside queries, keys and values; ``views`` [L] is what was recorded.
    """

    def __init__(self, config=None, scores=None, **known):
        self.config, self.scores, self.known = config, scores, known
        self.views, self.kept, self.stored, self.prompt = [], None, {}, None

    def __call__(self, module, query, key, value, attention_mask, scaling=None, **kwargs):
        layer = module.layer_idx
        if layer == len(self.views):
            weight = module.o_proj.weight.detach()
            view = PromptView(query.clone(), key.clone(), value.clone(), output_weight=weight, **self.known)
            self.views.append(view)
            self.prompt = query.shape[2]
            group = query.shape[1] // key.shape[1]
            expanded = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
            output = torch.nn.functional.scaled_dot_product_attention(
                query, *expanded, is_causal=self.prompt > 1, scale=scaling
            )
            return output.transpose(1, 2), None
        if self.kept is None:
            self.kept = reference.kept_positions(self.config, self.views, self.scores)
            if self.config.knobs.get("lookm_merge") == "pivot":
                self._merge()
        group = query.shape[1] // key.shape[1]
        output = torch.zeros(1, 1, query.shape[1], query.shape[3])
        for head in range(query.shape[1]):
            kv_head = head // group
            prompt, rest = self.kept[layer][kv_head], slice(self.prompt, None)
            old = self.stored.get((layer, kv_head)) or (key[0, kv_head, prompt], value[0, kv_head, prompt])
            keys, values = (
                torch.cat([one.to(new), new[0, kv_head, rest]])
                for one, new in zip(old, (key, value), strict=True)
            )
            output[0, 0, head] = reference.attend(query[0, head, 0], keys, values, scaling)
        return output, None

    def _merge(self):
        for layer, view in enumerate(self.views):
            for head, kept in enumerate(self.kept[layer]):
                self.stored[layer, head] = reference.merged(view.key[0, head], view.value[0, head], kept)


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
