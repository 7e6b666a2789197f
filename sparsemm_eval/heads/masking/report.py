"""The masking experiment as CSV, Markdown and a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas

from sparsemm_eval.files import write_text_atomically
from sparsemm_eval.heads.figures.plots import BLUE, ORANGE, new_figure, save_figure
from sparsemm_eval.heads.masking.experiment import Curve, mean_and_spread
from sparsemm_eval.heads.scores.table import count_of

COLUMNS = ("task", "metric", "samples", "heads", "share", "count", "draws", "score", "standard_error",
           "spread", "lowest", "highest")  # fmt: skip


def save_all(curves: Sequence[Curve], total: int, folder: Path, title: str = "") -> list[Path]:
    """Write ``mask.csv``, ``mask.md``, ``mask.png`` and ``mask.svg`` for a model of ``total`` query heads."""
    write_text_atomically(folder / "mask.csv", csv_text(curves, total))
    write_text_atomically(folder / "mask.md", (f"# {title}\n\n" if title else "") + markdown(curves, total))
    for ending in ("png", "svg"):
        save_mask_figure(curves, folder / f"mask.{ending}", title)
    return [folder / f"mask.{ending}" for ending in ("csv", "md", "png", "svg")]


def csv_text(curves: Sequence[Curve], total: int) -> str:
    """One row per task, kind of heads and share; ``spread`` is between draws. What is not known is empty."""
    rows: list[tuple[Any, ...]] = []
    for curve in curves:
        start = (curve.task, curve.metric, curve.samples)
        rows.append((*start, "nothing", 0.0, 0, 1, curve.full, curve.full_error, None, *[curve.full] * 2))
        for share, (score, error) in sorted(curve.visual.items()):
            rows.append(
                (*start, "visual", share, count_of(share, total), 1, score, error, None, score, score)
            )
        for share, values in sorted(curve.random.items()):
            mean, spread = mean_and_spread(values)
            found = (len(values), mean, None, spread, min(values), max(values))
            rows.append((*start, "random", share, count_of(share, total), *found))
    # as objects, so that whole numbers stay whole beside what is not known
    return pandas.DataFrame(rows, columns=list(COLUMNS), dtype=object).to_csv(
        index=False, lineterminator="\n"
    )


def markdown(curves: Sequence[Curve], total: int) -> str:
    """A table per task: score ± standard error, and for random heads mean ± standard deviation of draws."""
    lines = []
    for curve in curves:
        documents = "" if curve.samples is None else f", {curve.samples} documents"
        draws = max(map(len, curve.random.values()), default=0)
        lines += [
            f"### {curve.task}, {curve.metric}{documents}",
            "",
            f"| masked | heads of {total} | best visual | random others, {draws} draws | lowest … highest |",
            "|---|---|---|---|---|",
            f"| 0 % | 0 | {_figure(curve.full, curve.full_error)} | | |",
        ]
        for share, values in sorted(curve.visual.items()):
            drawn = curve.random.get(share, ())
            others = _figure(*mean_and_spread(drawn)) if drawn else ""
            edges = f"{min(drawn):.3f} … {max(drawn):.3f}" if drawn else ""
            count = count_of(share, total)
            lines.append(f"| {share:.1%} | {count} | {_figure(*values)} | {others} | {edges} |")
        lines.append("")
    return "\n".join(lines)


def save_mask_figure(curves: Sequence[Curve], path: str | Path, title: str = "") -> None:
    """Draw score against share of masked heads, one panel per task; the band is lowest to highest draw.

    Raises
    ------
    ConfigError
        For a file ending other than .png and .svg.
    """
    figure = new_figure(path, width=0.6 + 3.8 * len(curves), height=3.4)
    panels = figure.subplots(1, len(curves), squeeze=False).flatten()
    for panel, curve in zip(panels, curves, strict=True):
        _draw(panel, curve)
    panels[0].legend(frameon=False, fontsize=8, loc="best")
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def _draw(panel: Any, curve: Curve) -> None:
    panel.axhline(curve.full, color="0.6", linewidth=1, linestyle=":", zorder=0)
    if curve.random:
        shares = sorted(curve.random)
        across = [0.0, *(100 * share for share in shares)]
        drawn = [(curve.full,), *(curve.random[share] for share in shares)]
        means = [mean_and_spread(values)[0] for values in drawn]
        panel.fill_between(across, list(map(min, drawn)), list(map(max, drawn)), color=BLUE, alpha=0.2, lw=0)
        panel.plot(across, means, color=BLUE, marker="s", markersize=4, label="random other heads")
    shares = sorted(curve.visual)
    found = [(curve.full, curve.full_error), *(curve.visual[share] for share in shares)]
    panel.errorbar(
        [0.0, *(100 * share for share in shares)],
        [score for score, _ in found],
        yerr=[0.0 if math.isnan(error) else error for _, error in found],
        color=ORANGE,
        marker="o",
        markersize=5,
        capsize=2,
        label="best visual heads",
    )
    highest = max(score for score, _ in found)
    # most metrics lie between 0 and 1
    panel.set_ylim(bottom=0, top=1.05 if highest <= 1 else None)
    panel.set_xlim(left=-2 * max(curve.visual))  # 2 % of the width, so that the first markers are whole
    panel.set_xlabel("masked query heads, %")
    panel.set_ylabel(curve.metric.replace("_", " "))
    documents = "" if curve.samples is None else f" ({curve.samples} documents)"
    panel.set_title(curve.task + documents, fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)


def _figure(value: float, error: float) -> str:
    return f"{value:.3f}" if math.isnan(error) else f"{value:.3f} ± {error:.3f}"
