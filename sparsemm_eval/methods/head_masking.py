"""Head masking: the full cache, but some heads do not attend (paper, section on masking visual heads)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from sparsemm_eval.checks import OpenShare, Seed, Share, checked, one_of
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.methods.base import Head, Knob, Method, Settings, Style

MODES = ("query", "output")
MASK_RATIO = Knob("mask_ratio", 0.05, OpenShare, "share of all query heads that is masked")
MASK_MODE = Knob(
    "mask_mode",
    "query",
    one_of(*MODES),
    "`query`: masked heads attend evenly, as published; `output`: they return zeros",
)
MASK_SEED = Knob("mask_seed", 0, Seed, "draw of the random heads", draws=True)


def count_of(share: float, total: int) -> int:
    """Number of heads that make up a share of all; at least one for a share above zero."""
    share = checked(Share, "mask_ratio", share)
    return max(round(share * total), 1) if share > 0 else 0


def top_heads(scores: Any, share: float) -> list[Head]:
    """The ``share`` of query heads with the highest scores in a HeadScores table, best first."""
    count = count_of(share, scores.table.numel())
    order = scores.table.flatten().argsort(descending=True, stable=True)[:count]
    return [divmod(int(index), scores.num_heads) for index in order]


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


def visual(scores: Any, config: Settings) -> list[Head]:
    """The heads with the highest visual scores."""
    return top_heads(scores, config.mask_ratio)


def others(scores: Any, config: Settings) -> list[Head]:
    """As many heads drawn from all others."""
    best = top_heads(scores, config.mask_ratio)
    return random_heads(
        scores.num_layers, scores.num_heads, config.mask_ratio, config.mask_seed, exclude=best
    )


METHODS = (
    Method(
        name="mask",
        title="masked visual heads",
        paper="experiment in Wang et al., ICCV 2025",
        meaning="full cache, the heads with the highest visual scores masked",
        mask=visual,
        knobs=(MASK_RATIO, MASK_MODE),
        needs=("head_scores",),
        style=Style("#3a4ea0", "hexagon"),
    ),
    Method(
        name="mask_random",
        title="masked random heads",
        paper="control in Wang et al., ICCV 2025",
        meaning="full cache, random other heads masked",
        mask=others,
        knobs=(MASK_RATIO, MASK_MODE, MASK_SEED),
        needs=("head_scores",),
        style=Style("#6b6b6b", "cross"),
    ),
)
