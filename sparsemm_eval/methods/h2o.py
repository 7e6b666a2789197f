"""H2O: heavy hitters, the positions that received most attention from all queries, and recent ones."""

from __future__ import annotations

import torch

from sparsemm_eval.checks import Natural
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.methods.base import Knob, Method, PromptView, Score, Settings, Style, last_tokens, nothing
from sparsemm_eval.methods.prompt_attention import paid_by
from sparsemm_eval.methods.snapkv import uniform

RECENT = Knob(
    "recent", None, Natural | None, "last tokens that are always kept; none given: half of the budget"
)


def recent_tokens(config: Settings) -> int:
    """Last tokens that are kept in any case."""
    return config.budget // 2 if config.recent is None else config.recent


def recent_fits(config: Settings) -> None:
    """Refuse recent tokens that leave no room for others."""
    if config.recent is not None and config.recent >= config.budget:
        raise ConfigError(
            "recent", config.recent, f"an integer < budget ({config.budget}), which it is part of"
        )


def received(view: PromptView) -> torch.Tensor:
    """Attention that every position of one prompt receives from all queries: float32 [K, n].

    About the work of one more attention without fused kernels, and no more than a chunk of it in memory.
    """
    return paid_by(view, 0, view.length, "sum")


def column_sums(view: PromptView) -> torch.Tensor:
    """Attention received from all queries, mean over the group: float32 [B, K, N].

    The rule of FMInference/H2O ac75c2a (h2o_hf/utils_real_drop/modify_llama.py), which knows no GQA groups:
    there the mean is ours. The authors also evict while they generate.
    """
    return view.by_row(received)


def column_means(view: PromptView) -> torch.Tensor:
    """The same per query that sees a position: float32 [B, K, N], kvpress 0.5.5's ObservedAttentionPress."""

    def of_prompt(one: PromptView) -> torch.Tensor:
        return received(one) / torch.arange(one.length, 0, -1, device=one.key.device)

    return view.by_row(of_prompt)


METHODS = (
    Method(
        name="h2o",
        title="H2O",
        paper="Zhang et al., NeurIPS 2023, arXiv:2306.14048",
        meaning="most attended by all queries, and the most recent tokens",
        score=Score("h2o", column_sums, "attention received from all queries"),
        allocate=uniform,
        protect=lambda view: last_tokens(view, recent_tokens(view.config)),
        knobs=(RECENT,),
        check=recent_fits,
        style=Style("#37474f", "P"),
    ),
    Method(
        name="observed_attention",
        title="observed attention",
        paper="kvpress, 2024, after Zhang et al., NeurIPS 2023",
        meaning="attention received per query that can see the position; nothing is protected",
        score=Score("observed_attention", column_means, "attention received per query that can see it"),
        allocate=uniform,
        protect=nothing,
        style=Style("#78909c", "P"),
    ),
)
