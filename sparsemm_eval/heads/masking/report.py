"""The masking experiment as CSV, Markdown and a figure, all made from its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas

from sparsemm_eval.files import write_text_atomically
from sparsemm_eval.heads.figures.plots import BLUE, ORANGE, new_figure, save_figure
from sparsemm_eval.heads.masking.experiment import RANDOM, VISUAL


def save_all(table: pandas.DataFrame, total: int, folder: Path, title: str) -> list[Path]:
    """Write ``mask.csv``, ``mask.md``, ``mask.png`` and ``mask.svg`` for a model of ``total`` query heads.

    Values that are not known are empty in the CSV file.
    """
    write_text_atomically(folder / "mask.csv", table.to_csv(index=False, lineterminator="\n"))
    write_text_atomically(folder / "mask.md", f"# {title}\n\n" + markdown(table, total))
    for ending in ("png", "svg"):
        save_mask_figure(table, folder / f"mask.{ending}", title)
    return [folder / f"mask.{ending}" for ending in ("csv", "md", "png", "svg")]


def markdown(table: pandas.DataFrame, total: int) -> str:
    """A table per task: score ± standard error, and for random heads mean ± standard deviation of draws."""
    lines = []
    for _, rows in table.groupby("task", sort=False):
        full = rows.iloc[0]
        random = {row["share"]: row for row in rows[rows.heads == RANDOM].to_dict("records")}
        draws = max((row["draws"] for row in random.values()), default=0)
        lines += [
            f"### {full.task}, {full.metric}{_documents(full, ', {} documents')}",
            "",
            f"| masked | heads of {total} | best visual | random others, {draws} draws | lowest … highest |",
            "|---|---|---|---|---|",
            f"| 0 % | 0 | {_figure(full.score, full.standard_error)} | | |",
        ]
        for row in rows[rows.heads == VISUAL].to_dict("records"):
            others = edges = ""
            if drawn := random.get(row["share"]):
                others = _figure(drawn["score"], drawn["spread"])
                edges = f"{drawn['lowest']:.3f} … {drawn['highest']:.3f}"
            best = _figure(row["score"], row["standard_error"])
            lines.append(f"| {row['share']:.1%} | {row['count']} | {best} | {others} | {edges} |")
        lines.append("")
    return "\n".join(lines)


def save_mask_figure(table: pandas.DataFrame, path: str | Path, title: str) -> None:
    """Draw score against share of masked heads, one panel per task; the band is lowest to highest draw.

    Raises
    ------
    ConfigError
        For a file ending other than .png and .svg.
    """
    tasks = [rows for _, rows in table.groupby("task", sort=False)]
    figure = new_figure(path, width=0.6 + 3.8 * len(tasks), height=3.4)
    panels = figure.subplots(1, len(tasks), squeeze=False).flatten()
    for panel, rows in zip(panels, tasks, strict=True):
        _draw(panel, rows)
    panels[0].legend(frameon=False, fontsize=8, loc="best")
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def _draw(panel: Any, rows: pandas.DataFrame) -> None:
    full = rows.iloc[0]
    panel.axhline(full.score, color="0.6", linewidth=1, linestyle=":", zorder=0)
    numbers = rows[["share", "score", "standard_error", "lowest", "highest"]].astype(float)
    # Both curves begin at the model with all its heads.
    drawn, best = numbers[rows.heads != VISUAL], numbers[rows.heads != RANDOM]
    if len(drawn) > 1:
        panel.fill_between(100 * drawn.share, drawn.lowest, drawn.highest, color=BLUE, alpha=0.2, lw=0)
        style = {"color": BLUE, "marker": "s", "markersize": 4}
        panel.plot(100 * drawn.share, drawn.score, label="random other heads", **style)
    panel.errorbar(
        100 * best.share,
        best.score,
        yerr=best.standard_error.fillna(0.0),
        color=ORANGE,
        marker="o",
        markersize=5,
        capsize=2,
        label="best visual heads",
    )
    # Most metrics lie between 0 and 1.
    panel.set_ylim(bottom=0, top=1.05 if best.score.max() <= 1 else None)
    panel.set_xlim(left=-2 * best.share.max())  # 2 % of the width, so that the first markers are whole
    panel.set_xlabel("masked query heads, %")
    panel.set_ylabel(full.metric.replace("_", " "))
    panel.set_title(full.task + _documents(full, " ({} documents)"), fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)


def _documents(row: pandas.Series, words: str) -> str:
    """The number of documents in words; nothing where it is not known."""
    return "" if row.samples is None else words.format(row.samples)


def _figure(value: float, error: float | None) -> str:
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"
