"""Pictures of head scores: the layer x head map, and two tables against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.files import check_target, replacing
from sparsemm_eval.heads.scores.table import HeadScores

FORMATS = (".png", ".svg", ".pdf")
# Readers with any colour vision can tell these two apart.
BLUE, ORANGE = "#0072b2", "#d55e00"
LINEAR_BELOW = 1e-3  # shares of the score
NAMED_HEADS = 3


def save_head_map(scores: HeadScores, path: str | Path, title: str = "") -> None:
    """Draw the scores of all heads, layers down and heads across, as shares of the best one.

    Colours follow the square root, so that weaker heads can be told from those without any score.

    Raises
    ------
    ConfigError
        If the picture cannot be written, for instance for another ending than .png and .svg.
    """
    figure = new_figure(path, width=2 + 0.28 * scores.num_heads, height=1.3 + 0.28 * scores.num_layers)
    from matplotlib.colors import PowerNorm

    shares = (scores.table / scores.table.max()).numpy()
    bar = {"label": "score / best score", "ticks": (0, 0.01, 0.1, 0.25, 0.5, 1)}
    draw_map(figure, shares, "query head", title, norm=PowerNorm(0.5, vmin=0, vmax=1), **bar)
    save_figure(figure, path)


def draw_map(
    figure: Any, table: Any, heads: str, title: str, *, label: str, ticks: Any = None, **colours: Any
) -> None:
    """Fill a figure with a map of one number per head, [layers, heads]: layers down and heads across.

    ``heads`` says which heads these are, ``label`` and ``ticks`` are of the colour bar, and ``colours`` are
    settings of matplotlib's ``imshow``.
    """
    axes = figure.subplots()
    picture = axes.imshow(table, cmap="viridis", aspect="auto", **colours)
    axes.set(xlabel=heads, ylabel="layer", title=title)
    axes.set_xticks(whole_ticks(len(table[0])))
    axes.set_yticks(whole_ticks(len(table)))
    figure.colorbar(picture, ax=axes, label=label, ticks=ticks)


def save_comparison(first: HeadScores, second: HeadScores, names: tuple[str, str], path: str | Path) -> None:
    """Draw two tables of one shape against each other, one dot per head, both as shares of their sums.

    Axes are logarithmic from a share of 0.001 on and linear below. The best heads are named: layer-head.
    """
    figure = new_figure(path, width=4.5, height=4.5)
    axes = figure.subplots()
    a, b = ((scores.table / scores.table.sum()).flatten().numpy() for scores in (first, second))
    axes.scatter(a, b, s=14, color=BLUE, alpha=0.6, linewidths=0)
    limit = 1.5 * max(a.max(), b.max())
    axes.plot([0, limit], [0, limit], color="0.7", linewidth=1, zorder=0)
    for scale, bounds in ((axes.set_xscale, axes.set_xlim), (axes.set_yscale, axes.set_ylim)):
        scale("symlog", linthresh=LINEAR_BELOW)
        bounds(-LINEAR_BELOW / 5, limit)
    for index in (a + b).argsort()[::-1][:NAMED_HEADS]:
        name = "-".join(map(str, divmod(int(index), first.num_heads)))
        axes.annotate(name, (a[index], b[index]), (-5, 4), textcoords="offset points", ha="right", fontsize=8)
    axes.set(xlabel=f"share of the score, {names[0]}", ylabel=f"share of the score, {names[1]}")
    save_figure(figure, path)


def check_picture(argument: str, path: Path) -> None:
    """Refuse a picture that cannot be written, or has another ending than `FORMATS`."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(argument, str(path), "a file name that ends in " + ", ".join(FORMATS))
    check_target(argument, path)


def new_figure(path: str | Path, width: float, height: float) -> Any:
    """An empty figure, sizes in inches; a file that it cannot be written to is refused at once."""
    from matplotlib.figure import Figure

    check_picture("plot", Path(path))
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure; the same figure gives the same file."""
    from matplotlib import rc_context

    kind = Path(path).suffix.lower()[1:]
    # Without the time of writing: equal figures give equal files.
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    # Without the salt, SVG ids are random.
    with replacing(Path(path)) as fresh, rc_context({"svg.hashsalt": "sparsemm-eval"}):
        figure.savefig(fresh, format=kind, dpi=150, metadata=metadata)


def whole_ticks(count: int) -> range:
    return range(0, count, max(1, count // 8))
