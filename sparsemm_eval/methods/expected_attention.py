"""Expected attention: what queries of positions to come would attend to, by the statistics of those seen."""

from __future__ import annotations

import torch

from sparsemm_eval.checks import Count, NonNegative
from sparsemm_eval.methods.base import Knob, Method, PromptView, Score, Style
from sparsemm_eval.methods.snapkv import uniform
from sparsemm_eval.methods.streamingllm import SINKS, fits, sinks

FUTURE = Knob("future", 512, Count, "positions to come over which expected queries are averaged")
COVARIANCE = Knob("covariance", True, bool, "whether the spread of queries counts, beside their mean")
VALUE_NORM = Knob("value_norm", True, bool, "whether attention counts times the norm of the value")
EPSILON = Knob(
    "epsilon", 0.0, NonNegative, "added to expected attention before it is multiplied by the value norm"
)


def expected_attention(view: PromptView) -> torch.Tensor:
    """Attention of a Gaussian query behind the prompt: float32 [B, K, N].

    The rule of kvpress 0.5.5 (ExpectedAttentionPress). Mean and covariance of the queries before RoPE, those
    of the ``sinks`` left out, are turned by RoPE averaged over ``future`` positions; softmax over all but the
    sinks; mean over the group; times the L2 norm of the value. RoPE is taken back from queries that were
    turned, which costs the last bits.
    """
    return view.by_row(_scores)


def _scores(view: PromptView) -> torch.Tensor:
    config, first = view.config, min(view.config.sinks, view.length)
    group, dim = view.heads // view.kv_heads, view.query.shape[-1]
    scores = torch.full((view.kv_heads, view.length), torch.inf, device=view.key.device)
    if first == view.length:
        return scores
    query, key = _unturned(view)[:, first:], view.key[0, :, first:].float()
    mean = query.mean(1)
    cos, sin = (part[0].float().to(key.device) for part in view.rotation.future(config.future))
    logits = _grouped(_turned(mean, cos, sin)[:, :, None], key, group) / dim**0.5
    if config.covariance:
        spread = query - mean[:, None]
        spread = spread.transpose(1, 2) @ spread / query.shape[1]
        # rows, then columns
        spread = _turned(_turned(spread.transpose(1, 2), cos, sin).transpose(1, 2), cos, sin)
        logits = logits + _quadratic(spread, key, group) / (2 * dim)
    attention = logits.softmax(-1).unflatten(0, (view.kv_heads, group)).mean(1)
    if config.value_norm:
        norm = torch.linalg.vector_norm(view.value[0, :, first:].float(), dim=-1)
        attention = (attention + config.epsilon) * norm
    scores[:, first:] = attention
    return scores


def _grouped(mean: torch.Tensor, key: torch.Tensor, group: int) -> torch.Tensor:
    """[H, D, 1] with keys [K, n, D] -> [H, n]."""
    return (key.repeat_interleave(group, 0) @ mean)[..., 0] if group > 1 else (key @ mean)[..., 0]


def _quadratic(spread: torch.Tensor, key: torch.Tensor, group: int) -> torch.Tensor:
    """k' S k for S [H, D, D] and keys [K, n, D], head by head -> [H, n]."""
    return torch.stack(
        [((key[head // group] @ one) * key[head // group]).sum(-1) for head, one in enumerate(spread)]
    )


def _unturned(view: PromptView) -> torch.Tensor:
    """Queries before RoPE: float32 [H, n, D]."""
    query = view.query[0].float()
    cos, sin = view.rotation.cos[0].float(), view.rotation.sin[0].float()
    return _turned(query, cos, -sin) / (cos.square() + sin.square())


def _turned(vector: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = vector.chunk(2, dim=-1)
    return vector * cos + torch.cat([-right, left], dim=-1) * sin


METHOD = Method(
    name="expected_attention",
    title="Expected Attention",
    paper="Devoto et al., 2025, arXiv:2510.00636",
    meaning="what queries to come would attend to, by the statistics of those seen",
    score=Score(
        "expected_attention",
        expected_attention,
        "attention of queries to come, times the norm of the value",
        (SINKS, FUTURE, COVARIANCE, VALUE_NORM, EPSILON),
        ("values", "rotation"),
    ),
    allocate=uniform,
    protect=sinks,
    knobs=(SINKS,),
    check=fits,
    style=Style("#0277bd", "8"),
)
