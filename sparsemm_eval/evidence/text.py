"""The evidence as text: tables with intervals, and what they say about each claim of the paper."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import torch

from sparsemm_eval.evidence.measure import EFFORTS, Evidence
from sparsemm_eval.evidence.tasks import TASKS
from sparsemm_eval.heads.masking import report as mask_report
from sparsemm_eval.heads.scores.comparison import agreement
from sparsemm_eval.heads.scores.facts import noteworthy_heads, share_of_top
from sparsemm_eval.heads.scores.table import HeadScores, count_of

DRAWS = 300


def document(found: Evidence) -> str:
    """The whole of ``docs/evidence.md``."""
    parts = (_opening, _concentration, _universality, _masking, _compression, _ablation, _pictures)
    return "\n\n".join(block for part in parts for block in part(found)) + "\n"


def _opening(found: Evidence) -> list[str]:
    name, effort = found.reader.name, EFFORTS[found.effort]
    documents = effort.documents
    option = "" if found.effort == "full" else f" --effort {found.effort}"
    weights = found.reader.fingerprint["weights"][:19]
    return [
        "# The paper's evidence, on the shipped reader",
        _paragraph(
            f"Made by `python -m sparsemm_eval.evidence --out docs/evidence.md{option}`:",
            "everything here is measured by that command, on",
            f"`{name}` ({weights}…) in float32 on a CPU.",
            "Numbers in parentheses are 95 % intervals, by percentile bootstrap over images or documents.",
        ),
        _paragraph(
            f"`{name}` has 2 million parameters and reads rendered pages of characters, and its scores come",
            "from the same family of pages. What holds here shows that the mechanism works and is measured",
            "rightly; how large an effect is on a 7B model it cannot say.",
            f"There are {effort.images} images of each kind, {documents['pages_qa']} documents of",
            f"`pages_qa` and {documents['pages_ocr']} of `pages_ocr`, the first ones of each task; answers",
            "end 8 tokens after the length of the longest expected one.",
        ),
    ]


def _concentration(found: Evidence) -> list[str]:
    stack = next(iter(found.stacks.values()))
    tables = [HeadScores(table) for table in resampled_tables(stack, DRAWS)]
    mean = HeadScores(stack.mean(0))
    total = mean.table.numel()
    about = f"Share of the visual score that the best of {total} query heads hold, from the pages A:"
    lines = ["| best heads | share of the score |", "|---|---|"]
    for share in (0.01, 0.05, 0.1):
        whole, drawn = share_of_top(mean, share), [share_of_top(table, share) for table in tables]
        lines.append(f"| {share:.0%} ({count_of(share, total)}) | {_ranged(whole, drawn)} |")
    layer, head = mean.best_heads(1)[0]
    text = _paragraph(
        f"{noteworthy_heads(mean)} of {total} heads have more than 1 % of the best one's score; the best is",
        f"head {head} of layer {layer}. In the table the authors published for LLaVA-NeXT-Vicuna-7B the top",
        "5 % hold 56 % and the top 10 % hold 77 %. The map shows the shipped table.",
    )
    picture = "![layer by head map](figures/head-map.png)"
    return ["## Few heads do the seeing", about, "\n".join(lines), text, picture]


def _universality(found: Evidence) -> list[str]:
    names = list(found.stacks)
    reference = resampled_tables(found.stacks[names[0]], DRAWS, seed=1)
    cosines = {True: [], False: []}
    lines = [
        "| images | what | mode | tokens that count | Spearman | cosine | overlap of the top 5 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in found.kinds:
        stack = found.stacks[kind.name]
        start = f"| {kind.name} | {kind.text} | {kind.mode} | {found.counted[kind.name]} |"
        if kind.name == names[0]:
            lines.append(f"{start} | | |")
            continue
        whole = agreement(HeadScores(found.stacks[names[0]].mean(0)), HeadScores(stack.mean(0)))
        cosines[kind.mode == "generate"].append(whole.cosine)
        pairs = [
            agreement(HeadScores(a), HeadScores(b))
            for a, b in zip(reference, resampled_tables(stack, DRAWS, seed=2), strict=True)
        ]
        cells = [
            _ranged(getattr(whole, name), [getattr(pair, name) for pair in pairs])
            for name in ("spearman", "cosine", "overlap")
        ]
        lines.append(f"{start} " + " | ".join(cells) + " |")
    text = _paragraph(
        "`generate`: the reader answers; `teacher`: it is given the ground truth, since it was not trained",
        "on such images and cannot name them. Shapes are the control: objects and their names in COCO's",
        "format, drawn by this package, without any text. Drawing images anew adds noise to both tables, so",
        "the intervals lie low and need not hold the value itself. A top 5 % of 48 heads is 2 heads: the",
        "overlap is 0, 0.5 or 1.",
    )
    reads, cannot = min(cosines[True]), ", ".join(f"{cosine:.3f}" for cosine in cosines[False])
    return [
        "## Are they the same heads, whatever is read?",
        f"Agreement with the scores from {names[0]}:",
        "\n".join(lines),
        f"Cosine on images the reader reads: {reads:.3f} at the least; on images it cannot: {cannot}.",
        text,
        "![scores from two sets of pages](figures/two-sets-of-pages.png)",
    ]


def _masking(found: Evidence) -> list[str]:
    text = _paragraph(
        "Masked heads attend evenly to everything (`mode=query`, as published); the other heads are drawn",
        "from all but the best ones. ± is a standard error for the best heads, and the standard deviation",
        "between draws for the others.",
    )
    verdicts = []
    for curve in found.curves:
        share = min(curve.visual)
        best, others = curve.visual[share][0], curve.random[share]
        verdict = "below" if best < min(others) else "not below"
        verdicts.append(
            _paragraph(
                f"* `{curve.task}`: with the best {share:.0%} masked {best:.3f}, {verdict} every draw of",
                f"others ({min(others):.3f} … {max(others):.3f}); {curve.full:.3f} with all heads.",
                indent="  ",
            )
        )
    return [
        "## Without its visual heads the model does not read",
        mask_report.markdown(found.curves, found.shipped.table.numel()).rstrip(),
        text,
        "\n".join(verdicts),
        "![masking curves](figures/masking.png)",
    ]


def _compression(found: Evidence) -> list[str]:
    text = _paragraph(
        "SparseMM's rule at tight budgets (mean entries per KV head, window 8, kernel_size 5, surplus",
        "dropped) with visual scores, scores from shapes and random ones, and with several uniform shares ρ:",
    )
    rows = [row for row, budget in found.accuracy if budget and "window" not in row]
    return ["## Which scores, and how much to share evenly", text, _table(found, rows)]


def _ablation(found: Evidence) -> list[str]:
    before = _paragraph(
        "The parts of the rule one by one. *Window only* keeps the window of 8 and one entry more, the",
        "smallest budget there is; the others have the whole budget:",
    )
    after = _paragraph(
        "ρ = 1 gives every head the same (window + uniform), ρ = 0 shares by score alone (window + score),",
        "and ρ = 0.1 is all three parts, the paper's setting.",
    )
    rows = ["full cache", "window only", "window + uniform (ρ = 1)"]
    rows += ["visual scores, ρ = 0", "visual scores, ρ = 0.1"]
    return ["## Window, uniform share, score", before, _table(found, rows), after]


def _table(found: Evidence, rows: list[str]) -> str:
    """Accuracy by row and budget, one column per task."""
    lines = ["| | budget | " + " | ".join(TASKS) + " |", "|---" * (2 + len(TASKS)) + "|"]
    for row in dict.fromkeys(rows):
        for (name, budget), scores in found.accuracy.items():
            if name == row:
                cells = " | ".join(bootstrap(scores[task]) for task in TASKS)
                lines.append(f"| {name} | {budget or 'all'} | {cells} |")
    return "\n".join(lines)


def _pictures(found: Evidence) -> list[str]:
    text = _paragraph(
        "The attention of the three best and the three worst heads while the reader writes",
        f"`{found.word.word}`, a value on a page (framed): of the best head's attention on the image,",
        f"{found.on_word:.1%} lies on the cells of that value.",
    )
    return ["## Where the heads look", text, "![attention of single heads](figures/word.png)"]


def _paragraph(*pieces: str, indent: str = "") -> str:
    """Pieces as lines of at most 110 characters, all but the first indented."""
    return textwrap.fill(
        " ".join(pieces), width=110, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def resampled_tables(stack: torch.Tensor, draws: int, seed: int = 0) -> torch.Tensor:
    """Head-score tables float64 [draws, L, H], each summing to one, of images drawn with replacement.

    ``stack`` float64 [images, L, H] holds the scores of single images.
    """
    means = _resampled_means(stack, draws, seed)
    return means / means.sum((1, 2), keepdim=True)


def bootstrap(values: Sequence[float], draws: int = 2000, seed: int = 0) -> str:
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
