"""LOOK-M: text goes first, image tokens by attention, and evicted entries are merged into kept ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sparsemm_eval.checks import one_of
from sparsemm_eval.methods.base import Knob, Method, PromptView, Score, Style, last_tokens
from sparsemm_eval.methods.h2o import RECENT, received, recent_fits, recent_tokens
from sparsemm_eval.methods.snapkv import uniform

TEXT = Knob(
    "lookm_text",
    "first",
    one_of("first", "all"),
    "text goes `first` within the budget, or `all` of it is kept beyond the budget, as in the authors' code",
)
MERGE = Knob(
    "lookm_merge", "pivot", one_of("pivot", "off"), "what becomes of evicted entries: merged, or nothing"
)


def text_first(view: PromptView) -> torch.Tensor:
    """Rank by attention received from all queries, every text token above all image tokens: [B, K, N].

    SUSTechBruce/LOOK-M ecf0f51 (kv_token_merge/modify_llama.py, TextPivotMerge_LayerWise) takes a large
    number off the scores of image tokens, which rounds their differences away in half precision; here ranks
    are compared. The source knows no GQA groups; the mean over a group is ours (and EffiVLM-Bench's).
    """

    def of_prompt(one: PromptView) -> torch.Tensor:
        scores = received(one)
        place = scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        return (one.length - place + one.length * ~one.images[0]).float()

    return view.by_row(of_prompt)


def protected(view: PromptView) -> torch.Tensor:
    """The last tokens; with ``lookm_text=all`` every text token, too: bool [B, N].

    The authors' mask is ``score >= 0``, which holds for all text: their cache exceeds its budget whenever
    there is more text than heavy hitters.
    """
    found = last_tokens(view, recent_tokens(view.config))
    return found | ~view.images if view.config.lookm_text == "all" else found


def pivot(view: PromptView, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [B, K, N, D] after every evicted entry went into the kept one of the most similar key.

    A kept entry becomes the mean of itself and of (evicted + kept) / 2 over all that came to it.
    """
    if view.config.lookm_merge == "off":
        return view.key, view.value
    key, value = view.key.clone(), view.value.clone()
    evicted = ~kept & view.everything[:, None]
    for row in range(view.batch):
        for head in range(view.kv_heads):
            here, gone = (mask[row, head].nonzero().flatten() for mask in (kept, evicted))
            if not len(gone):
                continue
            old = view.key[row, head].float()
            nearest = (F.normalize(old[gone], dim=-1) @ F.normalize(old[here], dim=-1).T).argmax(-1)
            came = torch.ones(len(here), device=old.device).index_add_(
                0, nearest, torch.ones_like(old[gone, 0])
            )
            for entries in (key[row, head], value[row, head]):
                stay, go = entries[here].float(), entries[gone].float()
                total = stay.index_add(0, nearest, (go + stay[nearest]) / 2)
                entries[here] = (total / came[:, None]).to(entries.dtype)
    return key, value


METHOD = Method(
    name="lookm",
    title="LOOK-M",
    paper="Wan et al., Findings of EMNLP 2024, arXiv:2406.18139",
    meaning="text first, image tokens by attention received, evicted entries merged into kept ones",
    score=Score("lookm", text_first, "text first, then attention received from all queries", (), ("images",)),
    allocate=uniform,
    protect=protected,
    merge=pivot,
    knobs=(RECENT, TEXT, MERGE),
    check=recent_fits,
    needs=("images", "values"),
    style=Style("#c62828", "v"),
)
