"""VL-Cache: layers share the budget by how sparse the attention of the text behind the image is."""

from __future__ import annotations

import torch

from sparsemm_eval.methods.apportion import PROMPT_SHARE
from sparsemm_eval.methods.base import WINDOW, Knob, Method, PromptView, Score, Style, last_tokens, nothing
from sparsemm_eval.methods.prompt_attention import attention_rows, row_chunks

HEADWISE = Knob(
    "vlcache_heads", True, bool, "whether every KV head has an order of its own, or a layer has one"
)
LAYERWISE = Knob("vlcache_layers", True, bool, "whether layers share the budget by their sparsity, or evenly")
LAYER_RECENT = Knob(
    "vlcache_layer_recent", False, bool, "whether the last tokens kept follow a layer's share"
)
RECENT_SHARE = 0.1  # of a layer's entries, the last ones
THRESHOLD = 0.01  # of a row's largest attention, below which an entry counts as zero
SMALLEST = 0.01  # share of the prompt that every layer keeps


def _statistics(view: PromptView) -> list[tuple[float, torch.Tensor]]:
    """Per prompt: the layer's sparsity, and attention received from the text behind the image, [K, n]."""

    def of_prompt(one: PromptView) -> tuple[float, torch.Tensor]:
        images = one.images[0].nonzero()
        rows = one.length - 1 - int(images[-1]) if len(images) else one.config.window
        rows = min(max(rows, 1), one.length)
        scores = torch.zeros(one.kv_heads, one.length, device=one.key.device)
        kept, first = 0.0, one.length - rows
        for start, end in row_chunks(one, first, one.length):
            for head, attention in attention_rows(one, start, end):
                kept = kept + (attention >= THRESHOLD * attention.amax(-1, keepdim=True)).sum()
                scores[head, :end] += attention.sum((0, 1))
        causal = sum(range(first + 1, one.length + 1))
        if not one.config.vlcache_heads:
            scores[:] = scores.sum(0)
        return 1 - float(kept) / causal / one.heads, scores

    return view.once("vlcache", lambda: [of_prompt(one) for one in view.rows()])


def sparsities_of(view: PromptView) -> list[float]:
    """Of every prompt: the share of the text's causal attention that is next to nothing, mean over heads."""
    return [sparsity for sparsity, _ in _statistics(view)]


def text_attention(view: PromptView) -> torch.Tensor:
    """Attention of the text behind the last image, the window's where there is none: float32 [B, K, N]."""
    statistics = iter(_statistics(view))
    return view.by_row(lambda one: _ordered(one, next(statistics)[1]))


def _ordered(view: PromptView, scores: torch.Tensor) -> torch.Tensor:
    """With a layer's own number of last tokens: minus the place at which a growing budget takes one."""
    if not view.config.vlcache_layer_recent:
        return scores
    places = torch.zeros_like(scores)
    for head, best in enumerate(scores.argsort(dim=-1, descending=True, stable=True).tolist()):
        taken, recent = dict.fromkeys([view.length - 1]), 1
        others = iter(best)
        for count in range(1, view.length + 1):
            for _ in range(recent, max(1, int(RECENT_SHARE * count))):
                recent += 1
                taken.setdefault(view.length - recent)
            while len(taken) < min(count + recent, view.length):
                taken.setdefault(next(others))
        places[head, list(taken)] = -torch.arange(view.length, dtype=torch.float32, device=places.device)
    return places


def recent(view: PromptView) -> torch.Tensor:
    """The last tokens, a tenth of the share: bool [B, N]; none where layers have numbers of their own."""
    if view.config.vlcache_layer_recent:
        return nothing(view)
    counts = [max(1, int(RECENT_SHARE * n * _share(view, n))) for n in view.lengths.tolist()]
    return torch.cat([last_tokens(view, count)[:1] for count in counts])


def _share(view: PromptView, length: int) -> float:
    share = view.config.prompt_share
    return view.config.budget / length if share is None else share


def by_sparsity(view: PromptView, scores: torch.Tensor) -> torch.Tensor:
    """int64 [layer + 1, B, K]: layers whose attention is dense keep more.

    The rule of EffiVLM-Bench/EffiVLM-Bench ab3ee18 (kv_cache_utils.py, VlCacheKVCluster), a re-implementation
    of the paper, whose authors published no code. A layer's share of the prompt is its part of all layers'
    density (1 - sparsity), times layers, times the budget's share, at least 0.01 and at most 1; what is cut
    off there goes to nobody. A tenth of the budget is the last tokens. Shares are taken again after each
    layer: they only fall, so the end is the same as if all layers had been held.
    """
    sparsity = view.across_layers("vlcache", list)
    sparsity.append(sparsities_of(view))
    rows = [
        _targets(view, [layer[row] for layer in sparsity], length)
        for row, length in enumerate(view.fewest.tolist())
    ]
    return torch.tensor(rows).T[..., None].expand(-1, -1, view.kv_heads)


def _targets(view: PromptView, sparsity: list[float], length: int) -> list[int]:
    config, share = view.config, _share(view, length)
    scored = share if config.vlcache_layer_recent else (1 - RECENT_SHARE) * share
    smallest = SMALLEST if config.vlcache_layer_recent else (1 - RECENT_SHARE) * SMALLEST
    density = [1 - one for one in sparsity]
    targets = []
    for one in density:
        part = scored
        if config.vlcache_layers:
            part = one / sum(density) * scored * view.layers if sum(density) else scored
            part = min(max(part, smallest), 1.0)
        last = RECENT_SHARE * length * (part if config.vlcache_layer_recent else share)
        targets.append(max(1, int(last)) + max(1, int(part * length)))
    return targets


METHOD = Method(
    name="vlcache",
    title="VL-Cache",
    paper="Tu et al., ICLR 2025, arXiv:2410.23317",
    meaning="layers share the budget by the sparsity of the text's attention",
    score=Score(
        "vlcache",
        text_attention,
        "attention of the text behind the image",
        (WINDOW, HEADWISE, LAYER_RECENT),
        ("images",),
    ),
    allocate=by_sparsity,
    protect=recent,
    knobs=(WINDOW, HEADWISE, LAYERWISE, LAYER_RECENT, PROMPT_SHARE),
    needs=("all_layers", "images"),
    style=Style("#00695c", "D"),
)
