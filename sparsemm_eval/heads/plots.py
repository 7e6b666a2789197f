"""Pictures of head scores: the layer x head map, and two tables against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.head_score_table import HeadScores

FORMATS = (".png", ".svg")


def save_head_map(scores: HeadScores, path: str | Path, title: str = "") -> None:
    """Draw the scores of all heads, layers down and heads across, as shares of the best one.

    Parameters
    ----------
    scores : HeadScores
    path : str or Path
        Ends in .png or .svg.
    title : str

    Raises
    ------
    ConfigError
        For another ending.
    """
    figure = new_figure(path, width=2 + 0.28 * scores.num_heads, height=1.3 + 0.28 * scores.num_layers)
    axes = figure.subplots()
    picture = axes.imshow(
        (scores.table / scores.table.max()).numpy(), cmap="viridis", vmin=0, vmax=1, aspect="auto"
    )
    axes.set(xlabel="query head", ylabel="layer", title=title)
    axes.set_xticks(_ticks(scores.num_heads))
    axes.set_yticks(_ticks(scores.num_layers))
    figure.colorbar(picture, ax=axes, label="score / best score")
    save_figure(figure, path)


def save_comparison(first: HeadScores, second: HeadScores, names: tuple[str, str], path: str | Path) -> None:
    """Draw two tables against each other, one dot per head, both as shares of their sums.

    Parameters
    ----------
    first, second : HeadScores
        Of the same shape.
    names : (str, str)
    path : str or Path
        Ends in .png or .svg.

    Raises
    ------
    ConfigError
        For another ending.
    """
    figure = new_figure(path, width=4.5, height=4.5)
    axes = figure.subplots()
    a, b = ((scores.table / scores.table.sum()).flatten().numpy() for scores in (first, second))
    axes.scatter(a, b, s=12)
    limit = 1.05 * max(a.max(), b.max())
    axes.plot([0, limit], [0, limit], color="0.7", linewidth=1, zorder=0)
    axes.set(xlabel=f"share of the score, {names[0]}", ylabel=f"share of the score, {names[1]}")
    save_figure(figure, path)


def new_figure(path: str | Path, width: float, height: float) -> Any:
    """An empty figure, sizes in inches; a wrong file ending is refused before anything is computed."""
    from matplotlib.figure import Figure

    if Path(path).suffix.lower() not in FORMATS:
        raise ConfigError("plot", str(path), "a file name that ends in " + " or ".join(FORMATS))
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure; the same figure gives the same file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if Path(path).suffix.lower() == ".svg" else None
    figure.savefig(path, dpi=150, metadata=metadata)


def _ticks(count: int) -> range:
    return range(0, count, max(1, count // 8))
