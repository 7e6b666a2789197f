"""Attention inside one prompt, a few rows at a time: never all queries by all keys of all heads in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sparsemm_eval.methods.base import PromptView
from sparsemm_eval.methods.window_attention import TEMPORARY_BYTES


def attention_rows(view: PromptView, first: int, last: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Causal attention of the queries ``first`` to ``last - 1`` of one prompt, KV head after KV head.

    Parameters
    ----------
    view : PromptView
        Of a single prompt, without padding.
    first, last : int
        Positions in the prompt.

    Yields
    ------
    int, torch.Tensor
        A KV head, and float32 [G, last - first, last]: its group's query heads over the keys up to the last
        query. Scores are products in the dtype of the keys, their softmax is taken in float32.
    """
    group = view.heads // view.kv_heads
    scaling = view.query.shape[-1] ** -0.5 if view.scaling is None else view.scaling
    rows = torch.arange(first, last, device=view.key.device)
    future = torch.arange(last, device=view.key.device) > rows[:, None]
    for head in range(view.kv_heads):
        query = view.query[0, head * group : (head + 1) * group, first:last]
        scores = torch.matmul(query, view.key[0, head, :last].T).float().mul_(scaling)
        yield head, scores.masked_fill_(future, -torch.inf).softmax(-1)


def row_chunks(view: PromptView, first: int, last: int) -> Iterator[tuple[int, int]]:
    """The queries ``first`` to ``last - 1`` of one prompt in chunks whose attention fits TEMPORARY_BYTES."""
    group = view.heads // view.kv_heads
    limit = TEMPORARY_BYTES.get(view.key.device.type, TEMPORARY_BYTES["cpu"])
    chunk = max(1, limit // (group * view.length * 12))  # products and two float32 copies
    for start in range(first, last, chunk):
        yield start, min(start + chunk, last)


def paid_by(view: PromptView, first: int, last: int, by: str) -> torch.Tensor:
    """Attention that the queries ``first`` to ``last - 1`` of one prompt pay to every position up to them.

    Parameters
    ----------
    by : str
        ``sum`` over the queries and mean over the group, or ``max`` over both.

    Returns
    -------
    torch.Tensor
        float32 [K, last].
    """
    total = torch.zeros(view.kv_heads, last, device=view.key.device)
    for start, end in row_chunks(view, first, last):
        for head, attention in attention_rows(view, start, end):
            if by == "sum":
                total[head, :end] += attention.sum(1).mean(0)
            else:
                torch.maximum(total[head, :end], attention.amax((0, 1)), out=total[head, :end])
    return total
