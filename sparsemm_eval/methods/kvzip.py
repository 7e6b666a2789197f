"""KVzip: the entries that the model looks at while it repeats the context."""

from __future__ import annotations

import torch

from sparsemm_eval.checks import one_of
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.errors import one_of as choice
from sparsemm_eval.methods.apportion import PROMPT_SHARE
from sparsemm_eval.methods.base import FIRST_PASSES, Knob, Method, PromptView, Score, Settings, Style
from sparsemm_eval.methods.registry import scores as all_scores
from sparsemm_eval.methods.streamingllm import SINKS, sinks
from sparsemm_eval.methods.streamingllm import fits as sinks_fit

LEVEL = Knob(
    "kvzip_level",
    "pair",
    one_of("pair", "uniform"),
    "what competes: all entries of all layers and heads, or the entries of each head",
)


def repeated(view: PromptView) -> torch.Tensor:
    """Largest attention of the repeated context on every position, over its rows and the group: [B, K, N].

    The rule of snu-mllab/KVzip 5d84729 (attention/score.py, KVScore), as one chunk. The context is all up to
    the last image token, or the whole prompt where there is none; it stands twice in the pass that scores it,
    without the authors' words that ask for a repetition. Text behind it is kept.
    """
    return view.received[view.layer]


def protected(view: PromptView) -> torch.Tensor:
    """Sinks, and the text behind the context: bool [B, N]."""
    behind = view.images.flip(-1).cumsum(-1).flip(-1) == 0
    return sinks(view) | (behind & view.images.any(-1, keepdim=True))


def over_all_heads(view: PromptView, scores: torch.Tensor) -> torch.Tensor:
    """The best entries of the whole model, counted by head: int64 [B, K].

    ``prompt_share`` is the authors' way to give the budget: one entry less than that share of the scored
    entries of all heads (their threshold is not kept itself), or that share of each head's, with
    ``kvzip_level=uniform``.
    """

    def tables() -> torch.Tensor:
        return torch.stack([_row(view, row) for row in range(view.batch)], dim=1)

    return view.once_per_prompt("kvzip", tables)[view.layer]


def _row(view: PromptView, row: int) -> torch.Tensor:
    """int64 [L, K] of one prompt."""
    config = view.config
    fixed = (protected(view) | ~view.everything)[row]
    kept = int((protected(view) & view.everything)[row].sum())
    free, heads = int((~fixed).sum()), view.layers * view.kv_heads
    if config.kvzip_level == "uniform":
        each = config.budget if config.prompt_share is None else kept + int(free * config.prompt_share)
        return torch.full((view.layers, view.kv_heads), each)
    total = (config.budget - kept) * heads
    if config.prompt_share is not None:
        total = int(free * heads * config.prompt_share) - 1
    candidates = view.received[:, row][..., ~fixed]
    best = candidates.flatten().topk(min(max(total, 0), candidates.numel())).indices // max(free, 1)
    return kept + torch.bincount(best.cpu(), minlength=heads).view(view.layers, view.kv_heads)


def fits(config: Settings) -> None:
    """Refuse a budget without room beside the sinks, and a score that is not known before the first layer."""
    sinks_fit(config)
    if config.kvzip_level == "pair" and not FIRST_PASSES & set(config.score_in_use.needs):
        known = [name for name, score in all_scores().items() if FIRST_PASSES & set(score.needs)]
        remedy = f"{choice(config.score, known)}: entries of all layers compete, or use kvzip_level=uniform"
        raise ConfigError("score", config.score, remedy)


METHOD = Method(
    name="kvzip",
    title="KVzip",
    paper="Kim et al., NeurIPS 2025, arXiv:2505.23416",
    meaning="what the model looks at while it repeats the context",
    score=Score(
        "kvzip", repeated, "largest attention while the context is repeated", (), ("repeat_attention",)
    ),
    allocate=over_all_heads,
    protect=protected,
    knobs=(SINKS, LEVEL, PROMPT_SHARE),
    check=fits,
    needs=("images",),
    style=Style("#558b2f", "d"),
)
