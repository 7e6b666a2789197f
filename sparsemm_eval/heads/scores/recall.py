"""Evidence recall: the share of an answer's box tokens that are among the entries a head keeps."""

from __future__ import annotations

import numpy as np
from loguru import logger

from sparsemm_eval.errors import HeadScoreError
from sparsemm_eval.heads.scores.lookup import check_made_for, resolve
from sparsemm_eval.heads.scores.table import count_of

#: What `recall_figures` gives. Samples without evidence have none of them.
FIGURES = (
    "evidence_recall",
    "evidence_chance",
    "evidence_recall_visual",
    "evidence_recall_others",
    "evidence_recall_mean",
)
VISUAL_SHARE = 0.05  # of all KV heads, the visual ones by score


def known_shares(name: str, weights: str, layers: int, heads: int, kv_heads: int) -> np.ndarray | None:
    """Shares of all KV heads in the sum of the model's head scores, float64 [L, K].

    Looked up by the checkpoint's name alone, so that all methods of a model are weighted alike, whatever head
    scores they use. None, with a warning, where no scores are known for these weights.
    """
    try:
        scores = resolve(None, name)
        scores.check_fits(layers, heads)
        check_made_for(scores, weights, name)
        return scores.kv_head_shares(kv_heads).numpy()
    except HeadScoreError as error:
        logger.warning(f"evidence recall is not weighted by head scores: {error}")
        return None


def recall_figures(
    evidence_kept: np.ndarray,
    evidence_tokens: int,
    kept: np.ndarray,
    prompt_tokens: int,
    window: int,
    shares: np.ndarray | None,
) -> dict[str, float | None]:
    """The figures of one sample, each in [0, 1].

    Parameters
    ----------
    evidence_kept, kept : numpy.ndarray
        int [L, K]: evidence tokens, and tokens in all, that every KV head keeps of the prompt.
    evidence_tokens, prompt_tokens : int
        How many there are.
    window : int
        Tokens at the prompt's end that are always kept.
    shares : numpy.ndarray or None
        float64 [L, K] with sum 1.

    Returns
    -------
    dict
        ``evidence_recall``: share of the evidence tokens that is kept, mean over KV heads weighted by
        ``shares``; ``evidence_recall_visual``: plain mean over the visual KV heads, ``_others``: over all
        others, ``_mean``: over all. ``evidence_chance``: the weighted share of all tokens before the window
        that is kept, which is the recall of a method that knows how many entries a head gets and draws them
        blindly. What needs shares is None without them.
    """
    recall = evidence_kept / evidence_tokens
    found = dict.fromkeys(FIGURES) | {"evidence_recall_mean": float(recall.mean())}
    if shares is None:
        return found
    before = prompt_tokens - window
    blind = (kept - window) / before if before > 0 else np.ones(kept.shape)
    visual = np.zeros(shares.size, dtype=bool)
    visual[np.argsort(-shares, axis=None, kind="stable")[: count_of(VISUAL_SHARE, shares.size)]] = True
    others = recall.ravel()[~visual]
    return found | {
        # the shares may add up to a little more than 1
        "evidence_recall": min(float((shares * recall).sum()), 1.0),
        "evidence_chance": min(float((shares * blind).sum()), 1.0),
        "evidence_recall_visual": float(recall.ravel()[visual].mean()),
        "evidence_recall_others": float(others.mean()) if others.size else None,
    }
