"""LagKV: keys and values that stand out against the chunk that follows them."""

from __future__ import annotations

import torch

from sparsemm_eval.checks import Count, one_of
from sparsemm_eval.methods.base import Knob, Method, PromptView, Score, Style
from sparsemm_eval.methods.snapkv import uniform
from sparsemm_eval.methods.streamingllm import SINKS, fits

LAG = Knob("lag", 128, Count, "tokens per partition, each measured against the next one")
SMALLEST = 1e-6
RANKED = Knob(
    "lag_ranks",
    "partition",
    one_of("partition", "prompt"),
    "entries compete within their `partition`, as published, or by score in the whole `prompt`",
)


def end_of_scored(view: PromptView) -> tuple[int, int]:
    """Where the scored part of one prompt begins and ends; both are the sinks' end where it is too short."""
    sinks, lag = view.config.sinks, view.config.lag
    partitions = (view.length - sinks) // lag
    return sinks, sinks + max(partitions - 1, 0) * lag


def against_the_next(view: PromptView) -> torch.Tensor:
    """Spread of keys and values after min-max scaling by the next partition: float32 [B, K, N].

    The rule of AI-Lab-China-Merchants-Bank/LagKV 2a9d19e (lag_kv.py) and of kvpress 0.5.5 (LagKVPress), which
    agree but for defaults (sinks 16 and lag 1,024 there, 4 and 128 here as in kvpress). After the ``sinks``,
    the prompt is cut into partitions of ``lag``; every full one but the last is scored. The last full
    partition and what follows are kept, and so are the sinks. A prompt of less than two partitions keeps its
    last tokens. ``lag_ranks=prompt`` is kvpress's ``cross_scoring``. The authors compress again while a long
    prompt is read and while they generate; here the prompt is cut once.
    """
    return view.by_row(_scores)


def _scores(view: PromptView) -> torch.Tensor:
    first, last = end_of_scored(view)
    lag = view.config.lag
    position = torch.arange(view.length, dtype=torch.float32, device=view.key.device)
    if last <= first:
        return position.expand(view.kv_heads, -1)
    spread = (
        _spread(view.key[0, :, first : last + lag], lag) + _spread(view.value[0, :, first : last + lag], lag)
    ) / 2
    if view.config.lag_ranks == "partition":
        spread = spread.argsort(-1).argsort(-1) / lag
    scores = torch.ones(view.kv_heads, view.length, device=view.key.device)
    scores[:, first:last] = spread.flatten(1).float()
    return scores


def _spread(entries: torch.Tensor, lag: int) -> torch.Tensor:
    """Softmax within partitions of the deviation over channels: [K, (P + 1) * lag, D] -> [K, P, lag]."""
    parts = entries.unflatten(1, (-1, lag))
    low, high = parts[:, 1:].amin(2, keepdim=True), parts[:, 1:].amax(2, keepdim=True)
    span = (high - low).clamp_min(SMALLEST)  # 0 in a channel that does not change
    return ((parts[:, :-1] - low) / span).std(-1).softmax(-1)


def protected(view: PromptView) -> torch.Tensor:
    """Sinks, the last full partition and what follows it: bool [B, N]; the sinks alone of a short prompt.

    Where these exceed the budget, the last ones go first; the sources choose among them by chance.
    """
    found = torch.zeros(view.batch, view.length, dtype=torch.bool, device=view.key.device)
    for row, one in enumerate(view.rows()):
        (first, last), start = end_of_scored(one), view.length - one.length
        found[row, start : start + first] = True
        if last > first:
            found[row, max(start + last, view.length - view.config.budget + first) :] = True
    return found


METHOD = Method(
    name="lagkv",
    title="LagKV",
    paper="Liang et al., 2025, arXiv:2504.04704",
    meaning="keys and values that stand out against the chunk after them",
    score=Score(
        "lagkv", against_the_next, "spread against the next partition", (SINKS, LAG, RANKED), ("values",)
    ),
    allocate=uniform,
    protect=protected,
    knobs=(SINKS, LAG),
    check=fits,
    style=Style("#827717", ">"),
)
