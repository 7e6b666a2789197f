"""DuoAttention: retrieval heads keep the whole prompt, streaming heads its first and last tokens."""

from __future__ import annotations

import torch

from sparsemm_eval.checks import Share
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.methods.base import WINDOW, Knob, Method, PromptView, Settings, Style, last_window
from sparsemm_eval.methods.streamingllm import SINKS, recency, sinks

FULL_HEADS = Knob(
    "full_heads",
    None,
    Share | None,
    "share of KV heads that keep everything, whatever the budget; none given: as many as the budget pays for",
)


def by_pattern(view: PromptView, scores: torch.Tensor) -> torch.Tensor:
    """The whole prompt for the KV heads of highest score, sinks and window for the others: int64 [B, K].

    The paper (and RazorAttention, Tang et al., 2024) trains or measures a pattern; here it is the order of a
    table of head scores, summed over a GQA group. So that methods meet at equal budgets, as many heads are
    full as the budget pays for, and the next head keeps what is left over as recent tokens.
    """
    config = view.config

    def ranks() -> torch.Tensor:
        table = config.head_scores.table.view(view.layers, view.kv_heads, -1).sum(-1).flatten()
        return table.argsort(descending=True, stable=True).argsort().view(view.layers, view.kv_heads)

    rank = view.once_per_prompt("duoattention ranks", ranks)[view.layer]
    heads = view.layers * view.kv_heads
    rows = []
    for length in view.lengths.tolist():
        streaming = min(config.sinks + config.window, length)
        if config.full_heads is not None:
            full, rest = round(config.full_heads * heads), 0
        else:
            spare = max((config.budget - streaming) * heads, 0)
            full, rest = divmod(spare, length - streaming) if length > streaming else (heads, 0)
        counts = torch.full_like(rank, streaming)
        counts[rank == full] += rest
        counts[rank < full] = length
        rows.append(counts)
    return torch.stack(rows)


def protected(view: PromptView) -> torch.Tensor:
    """Sinks and the last ``window`` tokens: bool [B, N]."""
    return sinks(view) | last_window(view)


def fits(config: Settings) -> None:
    """Refuse a budget that streaming heads alone exceed, and another score, which would choose nothing."""
    if config.budget <= config.sinks + config.window:
        remedy = f"an integer > sinks + window ({config.sinks + config.window}), which streaming heads keep"
        raise ConfigError("budget", config.budget, remedy)
    if config.score_in_use.name != METHOD.score.name:
        raise ConfigError(
            "score", config.score, "no value: heads of duoattention keep all, or first and last tokens"
        )


METHOD = Method(
    name="duoattention",
    title="DuoAttention",
    paper="Xiao et al., ICLR 2025, arXiv:2410.10819",
    meaning="heads of high score keep everything, the others first and last tokens",
    score=recency,
    allocate=by_pattern,
    protect=protected,
    knobs=(SINKS, WINDOW, FULL_HEADS),
    check=fits,
    needs=("head_scores",),
    style=Style("#4527a0", "s"),
)
