"""Head masking: the full cache, but some heads do not attend (paper, section on masking visual heads)."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from sparsemm_eval.checks import OpenShare, Seed, one_of
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.scores.table import Head, HeadScores, count_of
from sparsemm_eval.methods.base import Knob, Method, Settings, Style

MODES = ("query", "output")
MASK_RATIO = Knob("mask_ratio", 0.05, OpenShare, "share of all query heads that is masked")
MASK_MODE = Knob(
    "mask_mode",
    "query",
    one_of(*MODES),
    "`query`: masked heads attend evenly, as published; `output`: they return zeros",
)
MASK_SEED = Knob("mask_seed", 0, Seed, "draw of the random heads", draws=True)


def top_heads(scores: HeadScores, share: float) -> list[Head]:
    """The ``share`` of query heads with the highest scores, best first.

    Their number is rounded, to 154 for 15 % of 1,024; the official code truncates it, to 153.
    """
    return scores.best_heads(count_of(share, scores.table.numel()))


def random_heads(
    num_layers: int, num_heads: int, share: float, seed: int, exclude: Iterable[Head] = ()
) -> list[Head]:
    """A ``share`` of all query heads drawn without replacement, never one of ``exclude``.

    Raises
    ------
    ConfigError
        If fewer heads than asked for are left to draw from.
    """
    excluded = set(exclude)
    candidates = [(i, j) for i in range(num_layers) for j in range(num_heads) if (i, j) not in excluded]
    count = count_of(share, num_layers * num_heads)
    if count > len(candidates):
        left = f"at most {len(candidates)} of {num_layers * num_heads} heads after exclusion"
        raise ConfigError("mask_ratio", share, left)
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))[:count]
    return [candidates[int(index)] for index in order]


def visual(scores: HeadScores, config: Settings) -> list[Head]:
    """The heads with the highest visual scores."""
    return top_heads(scores, config.mask_ratio)


def others(scores: HeadScores, config: Settings) -> list[Head]:
    """As many heads drawn from all others."""
    best = top_heads(scores, config.mask_ratio)
    return random_heads(
        scores.num_layers, scores.num_heads, config.mask_ratio, config.mask_seed, exclude=best
    )


VISUAL = Method(
    name="mask",
    title="masked visual heads",
    paper="experiment in Wang et al., ICCV 2025",
    meaning="full cache, the heads with the highest visual scores masked",
    mask=visual,
    knobs=(MASK_RATIO, MASK_MODE),
    needs=("head_scores",),
    style=Style("#3a4ea0", "h"),
)
OTHERS = Method(
    name="mask_random",
    title="masked random heads",
    paper="control in Wang et al., ICCV 2025",
    meaning="full cache, random other heads masked",
    mask=others,
    knobs=(MASK_RATIO, MASK_MODE, MASK_SEED),
    needs=("head_scores",),
    style=Style("#6b6b6b", "P"),
)
METHODS = (VISUAL, OTHERS)
