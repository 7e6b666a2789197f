"""How much the observation window looks at every prompt position: SnapKV's score, shared by many methods."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sparsemm_eval.checks import odd, one_of
from sparsemm_eval.methods.base import WINDOW, Knob, PromptView, Score

# For intermediate results. On a CPU larger ones leave the cache; on a GPU smaller ones mean more launches,
# which took 6 to 10 % of a prefill at 32 MiB. RoPE holds seven times as much for 32K tokens of a 7B model.
TEMPORARY_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
LARGEST_KERNEL = 4095

KERNEL_SIZE = Knob("kernel_size", 5, odd(LARGEST_KERNEL), "odd width of the pooling over positions")
POOLING = Knob(
    "pooling",
    "avg",
    one_of("avg", "max", "forward"),
    "pooling over positions: `avg` or `max` around them, or `forward`, the max over those before",
)
GQA = Knob("gqa", "mean", one_of("mean", "max"), "query heads of a group → KV head: `mean` or `max`")


def window_attention(view: PromptView) -> torch.Tensor:
    """SnapKV's score of a prompt: float32 [B, K, N]; infinity for the window, which scores the others."""
    config, device = view.config, view.key.device
    if view.length <= config.window:  # a layer that pruning has left with no more
        return torch.full((view.batch, view.kv_heads, view.length), torch.inf, device=device)
    future = view.once_per_prompt(("future", config.window, device), lambda: future_of(config.window, device))
    importance = window_importance(
        view.query,
        view.key,
        window=config.window,
        kernel_size=config.kernel_size,
        pooling=config.pooling,
        gqa=config.gqa,
        scaling=view.scaling,
        valid=view.valid,
        future=future,
    )
    return F.pad(importance, (0, config.window), value=torch.inf)


WINDOW_ATTENTION = Score(
    "window_attention",
    window_attention,
    "attention of the observation window, smoothed over positions",
    (WINDOW, KERNEL_SIZE, POOLING, GQA),
)


@torch.no_grad()  # which entries are kept has no gradient
def window_importance(
    query: torch.Tensor,
    key: torch.Tensor,
    *,
    window: int,
    kernel_size: int,
    pooling: str = "avg",
    gqa: str = "mean",
    scaling: float | None = None,
    valid: torch.Tensor | None = None,
    temporary_bytes: int | None = None,
    future: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of the last ``window`` queries on the positions before them, smoothed over positions.

    SnapKV's score, shared by all methods here: softmax over all keys (float32), mean over the window's rows,
    ``gqa`` reduction over the query heads of a KV head, then pooling with zero padding.

    Parameters
    ----------
    query : torch.Tensor
        [B, H, >= window, D] after RoPE; only the last ``window`` rows are read.
    key : torch.Tensor
        [B, K, N, D] after RoPE.
    window, kernel_size : int
        Observation window and odd pooling width, in positions.
    pooling, gqa : str
        ``avg``, ``max`` or ``forward``; ``mean`` or ``max``.
    scaling : float, optional
        Factor on the scores; default ``D ** -0.5``.
    valid : torch.Tensor, optional
        bool [B, N]; False marks left padding, which receives exactly zero importance.
    temporary_bytes : int, optional
        Memory for intermediate results, TEMPORARY_BYTES by default; changes no bit of the result on a CPU.
        One KV head's scores in the keys' dtype and two float32 copies of one query head's are needed in any
        case.
    future : torch.Tensor, optional
        ``future_of(window)``, where it is at hand.

    Returns
    -------
    torch.Tensor
        float32 [B, K, N - window].
    """
    batch, heads, _, dim = query.shape
    kv_heads, length = key.shape[1], key.shape[2]
    group = heads // kv_heads
    scaling = dim**-0.5 if scaling is None else scaling
    # a GQA group's queries share the keys, so they become extra rows instead of expanded keys
    if temporary_bytes is None:
        temporary_bytes = TEMPORARY_BYTES.get(key.device.type, TEMPORARY_BYTES["cpu"])
    rows = query[:, :, -window:].reshape(batch, kv_heads, group * window, dim)  # [B, K, G*w, D]
    score_bytes = window * length * rows.element_size()  # of a query head's matrix product
    softmax_bytes = window * length * 8  # of its scores and their softmax in float32
    kv_chunk = max(1, temporary_bytes // (group * (score_bytes + softmax_bytes)))
    chunk = max(1, (temporary_bytes - kv_chunk * group * score_bytes) // softmax_bytes)
    future = future_of(window, key.device) if future is None else future
    importance = rows.new_empty((batch, heads, length - window), dtype=torch.float32)
    # row by row: keys that are strided views of a projection would be copied to be one batch of matrices
    for row in range(batch):
        padding = None if valid is None else ~valid[row]
        for first in range(0, kv_heads, kv_chunk):
            part = slice(first, first + kv_chunk)
            scores = torch.matmul(rows[row, part], key[row, part].transpose(1, 2)).view(-1, window, length)
            target = importance[row, first * group :][: len(scores)]
            for mean, some in zip(target.split(chunk), scores.split(chunk), strict=True):
                _mean_attention(some, scaling, future, padding, mean)
            del scores, some  # before the next ones are made
    importance = importance.view(batch, kv_heads, group, length - window)
    if group == 1:
        importance = importance[:, :, 0]
    else:
        importance = importance.mean(dim=2) if gqa == "mean" else importance.amax(dim=2)
    return smooth(importance, kernel_size, pooling)


def future_of(window: int, device: torch.device) -> torch.Tensor:
    """bool [w, w]: which keys of the window come after a query of it."""
    return torch.ones(window, window, dtype=torch.bool, device=device).triu_(1)


def _mean_attention(
    scores: torch.Tensor,
    scaling: float,
    future: torch.Tensor,
    padding: torch.Tensor | None,
    mean: torch.Tensor,
) -> None:
    """Fill float32 [heads, P] from products [heads, w, N] of the window's queries with all keys."""
    window, length = scores.shape[1:]
    scores = scores.float().mul_(scaling)
    scores[..., length - window :].masked_fill_(future, float("-inf"))
    if padding is not None:
        scores.masked_fill_(padding, torch.finfo(torch.float32).min)
    attention = scores.softmax(-1)[..., : length - window]
    if padding is not None:
        # rows of the window that are padding themselves look at nothing
        attention.masked_fill_(padding[length - window :, None], 0.0)
    torch.mean(attention, dim=1, out=mean)


def smooth(importance: torch.Tensor, kernel_size: int, pooling: str) -> torch.Tensor:
    """Pool [B, K, P] over positions with stride 1; zero padding counts in the average.

    ``forward`` gives a position the largest importance among itself and the ``kernel_size`` - 1 before it:
    what is looked for in a text often stands right behind what is looked at.
    """
    if kernel_size == 1 or importance.shape[-1] == 0:
        return importance
    if pooling == "forward":
        return F.max_pool1d(F.pad(importance, (kernel_size - 1, 0)), kernel_size, stride=1)
    pool = F.avg_pool1d if pooling == "avg" else F.max_pool1d
    return pool(importance, kernel_size, stride=1, padding=kernel_size // 2)
