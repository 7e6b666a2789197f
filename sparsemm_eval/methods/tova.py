"""TOVA: what the last token looks at, one set of positions for all heads of a layer."""

from __future__ import annotations

import torch

from sparsemm_eval.checks import one_of
from sparsemm_eval.methods.base import Knob, Method, PromptView, Style, last_tokens
from sparsemm_eval.methods.prompt_attention import attention_rows
from sparsemm_eval.methods.snapkv import uniform

LAST_TOKEN = Knob(
    "last_token", "compete", one_of("compete", "keep"), "the last token: `compete` as the authors, or `keep`"
)


def last_query(view: PromptView) -> torch.Tensor:
    """Attention of the last query, mean over all query heads: float32 [B, K, N], equal for all KV heads.

    The rule of schwartz-lab-NLP/TOVA 9c7d09b (src/tova_cache.py) at the end of the prompt. The authors evict
    at every generated token, too; here generated tokens stay. kvpress keeps the last token in any case
    (``last_token=keep``).
    """

    def of_prompt(one: PromptView) -> torch.Tensor:
        rows = [attention[:, 0] for _, attention in attention_rows(one, one.length - 1, one.length)]
        return torch.cat(rows).mean(0).expand(one.kv_heads, -1)

    return view.by_row(of_prompt)


def protected(view: PromptView) -> torch.Tensor:
    """The last token, if it is to be kept: bool [B, N]."""
    return last_tokens(view, int(view.config.last_token == "keep"))


METHOD = Method(
    name="tova",
    title="TOVA",
    paper="Oren et al., EMNLP 2024, arXiv:2401.06104",
    meaning="what the last token attends to, the same positions for all heads of a layer",
    score=last_query,
    allocate=uniform,
    protect=protected,
    knobs=(LAST_TOKEN,),
    style=Style("#5a3e9e", "v"),
)
