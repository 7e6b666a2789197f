"""HeadKV: a fixed part of the budget for every head, the rest of the whole model's by head score."""

from __future__ import annotations

import torch

from sparsemm_eval.checks import FromOne, Positive, one_of
from sparsemm_eval.methods.base import Knob, Method, PromptView, Settings, Style
from sparsemm_eval.methods.window_attention import WINDOW_ATTENTION

BETA = Knob("headkv_beta", 1.2, FromOne, "β: 1/β of the budget beside the window goes by score")
TEMPERATURE = Knob("headkv_temp", 1.0, Positive, "exponent of the head scores")
PER = Knob(
    "headkv_per",
    "kv_head",
    one_of("kv_head", "query_head"),
    "who keeps entries: each `kv_head`, our rule for GQA, or each `query_head`, as in the authors' code",
)


def by_importance(view: PromptView, scores: torch.Tensor) -> torch.Tensor:
    """The rule of FYYFU/HeadKV 0862a09 (headkv/snapkv_utils.py, ReasonSnapKVCluster): int64 [B, K].

    Every head keeps the window, base - base // β, and its share of the model's pool of base // β per head,
    where base is the budget beside the window. It is SparseMM's rule with ρ = 1 - 1/β and another score
    file. The authors' README says that a higher β means a larger pool; their code, and this, do the opposite.

    With GQA the authors repeat keys and keep a set per query head, so that groups save nothing:
    ``headkv_per=query_head``, where the budget counts entries per query head and a KV head holds those of
    its whole group; so does a prompt that fits the budget beside one that does not. By default KV heads keep
    entries, by the sum of their query heads' scores.
    """
    config = view.config

    def shares() -> torch.Tensor:
        table = config.head_scores.table.double()
        table = (table / table.max()) ** config.headkv_temp  # by the largest, so that not all become 0
        return (table / table.sum()).view(view.layers, view.kv_heads, -1).sum(-1)

    share = view.once_per_prompt("headkv shares", shares)[view.layer]
    pool = view.base // config.headkv_beta
    kept = (share * pool * view.layers * view.kv_heads + view.base - pool).round().to(torch.int64)
    return (kept + config.window).expand(view.batch, -1)


def per_query_head(config: Settings) -> bool:
    """Whether query heads keep entries of their own."""
    return config.headkv_per == "query_head"


METHOD = Method(
    name="headkv",
    title="HeadKV",
    paper="Fu et al., ICLR 2025, arXiv:2410.19258",
    meaning="a fixed part for every head, the rest by head score",
    score=WINDOW_ATTENTION,
    allocate=by_importance,
    per_query_head=per_query_head,
    knobs=(BETA, TEMPERATURE, PER),
    needs=("head_scores",),
    style=Style("#6d4c41", "X"),
)
