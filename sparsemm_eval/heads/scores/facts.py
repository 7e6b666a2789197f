"""What tables of head scores say: one in numbers and in lines of text, and how far two agree."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from scipy.stats import spearmanr

from sparsemm_eval.heads.scores.table import Head, HeadScores, count_of

SHARES = (0.01, 0.05, 0.1)  # of all query heads
NOTEWORTHY = 0.01  # a head below this part of the best one hardly takes part
TOP_SHARE = 0.05  # the best heads whose overlap tells how far two tables agree


def share_of_top(scores: HeadScores, share: float) -> float:
    """Part of the whole score that the best ``share`` of all query heads holds (at least one head)."""
    best = scores.best_heads(count_of(share, scores.table.numel()))
    return sum(float(scores.table[head]) for head in best) / float(scores.table.sum())


def layer_shares(scores: HeadScores) -> list[float]:
    """Part of the whole score that each layer holds; sums to one."""
    return (scores.table.sum(1) / scores.table.sum()).tolist()


def noteworthy_heads(scores: HeadScores) -> int:
    """Number of query heads with more than 1 % of the best one's score."""
    return int((scores.table > NOTEWORTHY * scores.table.max()).sum())


def hit_rate(scores: HeadScores, head: Head) -> float | None:
    """How often the head looked at what it was about to say, where the table knows; per token and key."""
    facts = scores.provenance
    if "hits" not in facts or not facts.get("tokens"):
        return None
    return facts["hits"][head[0]][head[1]] / (facts["tokens"] * facts.get("topk", 1))


def lines(scores: HeadScores, top: int = 10) -> list[str]:
    """The facts as text: origin, concentration, layers, best heads."""
    total, facts = scores.table.numel(), scores.provenance
    text = [f"{scores.num_layers} layers x {scores.num_heads} query heads"]
    plain = {k: v for k, v in facts.items() if v is not None and not isinstance(v, (list, dict))}
    text += textwrap.wrap(", ".join(f"{name} {value}" for name, value in plain.items()), width=100)
    for share in SHARES:
        part = share_of_top(scores, share)
        text.append(f"top {share:.0%} of heads ({count_of(share, total)}): {part:.1%} of the score")
    text.append(f"{noteworthy_heads(scores)} of {total} heads have more than 1 % of the best one's score")
    text += [f"layer {layer}: {share:.1%}" for layer, share in enumerate(layer_shares(scores))]
    if facts.get("bad_boxes"):
        reasons = ", ".join(f"{count} {reason}" for reason, count in facts["bad_boxes"].items())
        text.append(f"boxes left out: {reasons}")
    errors = facts.get("standard_error")
    for layer, head in scores.best_heads(top):
        line = f"layer {layer} head {head}: {float(scores.table[layer, head]):.5g}"
        if errors:
            line += f" ± {errors[layer][head]:.2g}"
        rate = hit_rate(scores, (layer, head))
        text.append(line if rate is None else f"{line}, looked at its token {rate:.1%} of the time")
    return text


@dataclass(frozen=True)
class TableAgreement:
    """Agreement of two tables of the same model."""

    spearman: float  # rank correlation over all heads, ties averaged; nan if one table is constant
    cosine: float  # of the tables as vectors
    overlap: float  # share of the best 5 % of heads that both have


def agreement(first: HeadScores, second: HeadScores) -> TableAgreement:
    """Compare two tables.

    Raises
    ------
    HeadScoreError
        If they are of different shapes, so of different models.
    """
    second.check_fits(first.num_layers, first.num_heads)
    a, b = first.table.flatten(), second.table.flatten()
    constant = bool((a == a[0]).all() or (b == b[0]).all())
    count = count_of(TOP_SHARE, len(a))
    best, others = set(first.best_heads(count)), set(second.best_heads(count))
    return TableAgreement(
        spearman=float("nan") if constant else float(spearmanr(a.numpy(), b.numpy()).statistic),
        cosine=float(a @ b / (a.norm() * b.norm())),
        overlap=len(best & others) / count,
    )
