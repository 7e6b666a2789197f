"""The evidence as text: the numbers that ``evidence.md.j2`` puts into its sentences and tables."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import jinja2
import torch

from sparsemm_eval.evidence.measure import EFFORTS, Evidence
from sparsemm_eval.heads.masking import report as mask_report
from sparsemm_eval.heads.masking.experiment import RANDOM, VISUAL
from sparsemm_eval.heads.scores.facts import SHARES, agreement, noteworthy_heads, share_of_top
from sparsemm_eval.heads.scores.table import HeadScores, count_of
from sparsemm_eval.lmms.tasks import PAGE_METRICS

WIDTH = 110  # characters of a line
DRAWS = 300  # of the bootstrap of head-score tables
ABLATION = (
    "full cache",
    "window only",
    "window + uniform (ρ = 1)",
    "visual scores, ρ = 0",
    "visual scores, ρ = 0.1",
)


def document(found: Evidence) -> str:
    """The whole of ``docs/evidence.md``."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sparsemm_eval.evidence", ""),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["fill"] = _fill
    effort, names = EFFORTS[found.effort], list(found.stacks)
    mean = HeadScores(found.stacks[names[0]].mean(0))
    total = mean.table.numel()
    best_layer, best_head = mean.best_heads(1)[0]
    compared = dict.fromkeys(row for row, budget in found.accuracy if budget and "window" not in row)
    return environment.get_template("evidence.md.j2").render(
        option="" if found.effort == "full" else f" --effort {found.effort}",
        name=found.reader.name,
        weights=found.reader.fingerprint["weights"][:19],
        images=effort.images,
        documents=effort.documents,
        total=total,
        concentration=list(_concentration(found.stacks[names[0]])),
        noteworthy=noteworthy_heads(mean),
        best_layer=best_layer,
        best_head=best_head,
        kinds=found.kinds,
        counted=found.counted,
        **_agreements(found),
        masking=mask_report.markdown(found.masking, total).rstrip(),
        verdicts=list(_verdicts(found)),
        tasks=PAGE_METRICS,
        scores_and_shares=_accuracy(found, compared),
        ablation=_accuracy(found, ABLATION),
        word=found.word.word,
        on_word=f"{found.on_word:.1%}",
    )


def _fill(text: str, indent: str = "") -> str:
    """A paragraph as lines of at most ``WIDTH`` characters, all but the first indented."""
    wrapper = textwrap.TextWrapper(
        width=WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return wrapper.fill(" ".join(text.split())) + "\n"


def _concentration(stack: torch.Tensor) -> Iterator[tuple[str, str]]:
    """Name of a share of the best heads, and the part of the score it holds."""
    mean, tables = HeadScores(stack.mean(0)), [HeadScores(table) for table in resampled_tables(stack, DRAWS)]
    for share in SHARES:
        drawn = [share_of_top(table, share) for table in tables]
        heads = f"{share:.0%} ({count_of(share, mean.table.numel())})"
        yield heads, _ranged(share_of_top(mean, share), drawn)


def _agreements(found: Evidence) -> dict[str, Any]:
    """Each kind's agreement with the first kind as cells, and the cosines that the text names."""
    first, *others = found.kinds
    reference = resampled_tables(found.stacks[first.name], DRAWS, seed=1)
    cells, cosines = {first.name: ["–"] * 3}, {"generate": [], "teacher": []}
    for kind in others:
        stack = found.stacks[kind.name]
        whole = agreement(HeadScores(found.stacks[first.name].mean(0)), HeadScores(stack.mean(0)))
        cosines[kind.mode].append(whole.cosine)
        pairs = [
            agreement(HeadScores(a), HeadScores(b))
            for a, b in zip(reference, resampled_tables(stack, DRAWS, seed=2), strict=True)
        ]
        cells[kind.name] = [
            _ranged(getattr(whole, name), [getattr(pair, name) for pair in pairs])
            for name in ("spearman", "cosine", "overlap")
        ]
    return {
        "agreements": cells,
        "reads": f"{min(cosines['generate']):.3f}",
        "cannot": ", ".join(f"{cosine:.3f}" for cosine in cosines["teacher"]),
    }


def _verdicts(found: Evidence) -> Iterator[dict[str, str]]:
    """What the smallest share of masked heads does to each task."""
    for task, rows in found.masking.groupby("task", sort=False):
        full = rows.iloc[0]
        # Shares ascend, so the first row of a kind is of the smallest.
        best, others = rows[rows.heads == VISUAL].iloc[0], rows[rows.heads == RANDOM].iloc[0]
        yield {
            "task": task,
            "share": f"{best.share:.0%}",
            "best": f"{best.score:.3f}",
            "word": "below" if best.score < others.lowest else "not below",
            "lowest": f"{others.lowest:.3f}",
            "highest": f"{others.highest:.3f}",
            "full": f"{full.score:.3f}",
        }


def _accuracy(found: Evidence, rows: Iterable[str]) -> list[tuple[str, int | str, list[str]]]:
    """Name, budget and one cell per task of each budget that a row of the accuracy tables has."""
    return [
        (name, budget or "all", [bootstrap(scores[task]) for task in PAGE_METRICS])
        for row in rows
        for (name, budget), scores in found.accuracy.items()
        if name == row
    ]


def resampled_tables(stack: torch.Tensor, draws: int, seed: int = 0) -> torch.Tensor:
    """Head-score tables float64 [draws, L, H], each summing to one, of images drawn with replacement.

    ``stack`` float64 [images, L, H] holds the scores of single images.
    """
    means = _resampled_means(stack, draws, seed)
    return means / means.sum((1, 2), keepdim=True)


def bootstrap(values: list[float], draws: int = 2000, seed: int = 0) -> str:
    """Mean of documents' scores with the percentile bootstrap's 95 % interval."""
    data = torch.tensor(values, dtype=torch.float64)
    return _ranged(float(data.mean()), _resampled_means(data, draws, seed).tolist())


def _resampled_means(data: torch.Tensor, draws: int, seed: int) -> torch.Tensor:
    """Means over the first dimension, drawn with replacement: [draws, …]."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(data), (draws, len(data)), generator=generator)
    return data[chosen].mean(1)


def _ranged(value: float, draws: list[float]) -> str:
    """A value with the 95 % interval of its bootstrap draws; draws without a value are left out."""
    known = torch.tensor([draw for draw in draws if not math.isnan(draw)], dtype=torch.float64)
    low, high = known.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return f"{value:.3f} ({low:.3f} … {high:.3f})"
