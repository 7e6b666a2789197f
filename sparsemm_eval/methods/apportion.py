"""Sharing a whole number of entries among heads that can each hold only so many."""

from __future__ import annotations

import torch

from sparsemm_eval.checks import PositiveShare, one_of
from sparsemm_eval.methods.base import Knob

SURPLUS = Knob(
    "surplus",
    "drop",
    one_of("drop", "redistribute"),
    "budget beyond the prompt: `drop` as published, or `redistribute` to heads that can use it",
)
PROMPT_SHARE = Knob(
    "prompt_share",
    None,
    PositiveShare | None,
    "budget as the authors give it: a share of each prompt's tokens, in place of `budget`",
)


def water_fill(floor: torch.Tensor, weight: torch.Tensor, *, cap: int, total: int) -> torch.Tensor:
    """Give every head ``min(cap, floor + level * weight)``, with the level at which all is used up.

    What a full head cannot take thus goes to the others in proportion to their weight; what is left when all
    weighted heads are full goes to the rest evenly. Largest remainders make the whole numbers add up.

    Parameters
    ----------
    floor, weight : torch.Tensor
        float64 [M], non-negative.
    cap : int
        Entries one head can hold at most.
    total : int
        Entries to give out.

    Returns
    -------
    torch.Tensor
        int64 [M] within [0, cap], summing to exactly ``min(total, M * cap)``. As with every largest-remainder
        rule, one more entry in total may move one entry between two heads.
    """
    count = floor.numel()
    target = min(total, count * cap)
    share = floor.clamp(max=cap)
    if float(share.sum()) > target:  # not even the floors fit: scale them down
        share = share * (target / float(share.sum()))
    else:
        share = _raise_level(share, weight, cap, target)
        share = _raise_level(share, torch.ones_like(weight), cap, target)
    return _largest_remainder(share, cap, target)


def _raise_level(share: torch.Tensor, weight: torch.Tensor, cap: int, target: float) -> torch.Tensor:
    """Add level * weight to every share, capped, until the sum is ``target`` or all weighted are full."""
    room = cap - share
    weighted = weight > 0
    full_at = torch.where(weighted, room / torch.where(weighted, weight, 1.0), torch.inf)  # level that fills
    order = full_at.argsort()
    # weight still open before each step, summed from the smallest up so that tiny weights survive
    open_weight = weight[order].flip(0).cumsum(0).flip(0)
    missing, filled = target - float(share.sum()), 0.0
    added = torch.zeros_like(share)
    for place, head in enumerate(order.tolist()):
        at, still_open = float(full_at[head]), float(open_weight[place])
        if still_open == 0:
            break
        if at == float("inf") or missing <= filled + still_open * at:
            rest = order[place:]
            # a share of the weight, not a level, which tiny weights would raise beyond all numbers
            added[rest] = (missing - filled) * (weight[rest] / still_open)
            break
        added[head] = room[head]
        filled += float(room[head])
    return torch.minimum(share + added.clamp_min(0.0), torch.full_like(share, cap))


def _largest_remainder(share: torch.Tensor, cap: int, target: int) -> torch.Tensor:
    whole = share.floor().clamp(max=cap).to(torch.int64)
    left = target - int(whole.sum())
    remainder = torch.where(whole < cap, share - whole, -torch.inf)
    order = remainder.argsort(descending=True, stable=True)
    while left > 0:  # more than one round only where float error left whole entries over
        for head in order.tolist():
            if left and whole[head] < cap:
                whole[head] += 1
                left -= 1
    while left < 0:
        for head in order.flip(0).tolist():
            if left and whole[head] > 0:
                whole[head] -= 1
                left += 1
    return whole
