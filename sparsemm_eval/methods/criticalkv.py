"""CriticalKV: attention first, then attention times what a value adds to the layer's output."""

from __future__ import annotations

import torch

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.methods.base import WINDOW, Method, PromptView, Score, Style
from sparsemm_eval.methods.snapkv import uniform
from sparsemm_eval.methods.window_attention import GQA, KERNEL_SIZE, POOLING, window_attention

FLOOR = 0.2  # share of a head's budget that the adaptive variant grants it
EPSILON = 1e-4


def output_norms(view: PromptView) -> torch.Tensor:
    """L1 norm of every value after the output projection, mean over the group: float32 [B, K, N].

    One query head at a time: [B, N, hidden] is the largest temporary. About a tenth of a layer's prefill.
    """
    weight, dim, group = view.output_weight, view.value.shape[-1], view.heads // view.kv_heads
    if weight.ndim != 2 or weight.shape[1] != view.heads * dim or not weight.is_floating_point():
        raise UnsupportedError(
            f"o_proj.weight is {weight.dtype} {list(weight.shape)}: score=criticalkv needs floats "
            f"[hidden, {view.heads * dim}], so load the model without quantisation"
        )
    norms = torch.zeros(view.batch, view.kv_heads, view.length, device=view.key.device)
    for head in range(view.heads):
        projection = weight[:, head * dim : (head + 1) * dim].to(view.value)
        norms[:, head // group] += (view.value[:, head // group] @ projection.T).abs().sum(-1).float()
    return norms / group


def two_stages(view: PromptView, scores: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Half of a head's entries by attention, the rest by (attention + 1e-4) * norm: float32 [B, K, N].

    The rule of kvpress 0.5.5 (CriticalKVPress over SnapKVPress). There the window is kept by large scores
    only, so that a budget below twice the window can lose parts of it; here it is kept in any case.
    """
    if view.valid is not None:
        scores = scores.masked_fill(~view.everything[:, None], -torch.inf)
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    first = rank < (count.to(rank.device) // 2)[..., None]
    return ((scores + EPSILON) * output_norms(view)).masked_fill(first, torch.inf)


def by_safeguarded_competition(view: PromptView, scores: torch.Tensor) -> torch.Tensor:
    """AdaKV as kvpress has it (CriticalAdaKVPress): int64 [B, K], on the scores' device.

    A head's best fifth of the budget counts as won; then the best K * budget entries of all are counted.
    The authors' AdaKV weighs heads by the attention they keep, and mixes counts with a floor.
    """
    floor = max(1, int(FLOOR * view.config.budget))

    def of_prompt(scores: torch.Tensor) -> torch.Tensor:
        safe = scores.topk(floor, dim=-1).indices
        scores = scores.scatter(-1, safe, torch.inf)
        winners = scores.flatten().topk(view.kv_heads * view.config.budget).indices // scores.shape[1]
        counts = torch.zeros(view.kv_heads, dtype=torch.int64, device=scores.device)
        return counts.scatter_add_(0, winners, torch.ones_like(winners))

    rows = []
    for row, length in enumerate(view.lengths.tolist()):
        if length <= view.config.budget:
            rows.append(torch.full((view.kv_heads,), length, dtype=torch.int64, device=scores.device))
        else:
            rows.append(of_prompt(scores[row, :, view.length - length :]))
    return torch.stack(rows)


SCORE = Score(
    "criticalkv",
    window_attention,
    "attention of the observation window, then times what the value adds to the output",
    (WINDOW, KERNEL_SIZE, POOLING, GQA),
    ("values", "output_weight"),
    select=two_stages,
)
METHODS = (
    Method(
        name="criticalkv",
        title="CriticalKV",
        paper="Feng et al., 2025, arXiv:2502.03805",
        meaning="SnapKV, its second half chosen by attention times what a value adds to the output",
        score=SCORE,
        allocate=uniform,
        style=Style("#ad1457", "d"),
    ),
    Method(
        name="criticaladakv",
        title="CriticalAdaKV",
        paper="Feng et al., 2025, arXiv:2502.03805",
        meaning="CriticalKV, whose heads compete for a layer's budget",
        score=SCORE,
        allocate=by_safeguarded_competition,
        style=Style("#d81b60", "d"),
    ),
)
