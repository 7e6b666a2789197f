"""A study's curves as pictures for papers: score against effective budget, one file per task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sparsemm_eval.heads.figures.plots import new_figure, save_figure
from sparsemm_eval.study.columns import crossed_knobs
from sparsemm_eval.study.method_knobs import REFERENCE, style_of, title_of
from sparsemm_eval.study.seeds import configurations

#: matplotlib's markers by plotly's names, which methods use.
MARKERS = {
    "circle": "o",
    "square": "s",
    "triangle-up": "^",
    "diamond": "D",
    "star": "*",
    "x": "X",
    "hexagon": "h",
    "cross": "P",
    "pentagon": "p",
}


def save_curves(cells: pd.DataFrame, samples: pd.DataFrame, folder: Path, ending: str = "png") -> list[Path]:
    """Draw every task: a panel per model and combination of crossed knobs, all methods in it.

    A band is the 95 % interval over documents; the dashed line is FullKV. Seeds are averaged per document.

    Parameters
    ----------
    cells, samples : pandas.DataFrame
        Of `results.collect`.
    folder : pathlib.Path
    ending : str
        ``png`` or ``svg``.

    Returns
    -------
    list of pathlib.Path
        One file per task, named after it.

    Raises
    ------
    ConfigError
        For another ending.
    """
    frame = configurations(cells, samples)
    knobs = crossed_knobs(cells)
    paths = []
    for task in frame["task"].unique():
        path = folder / f"{task}.{ending}"
        _draw(frame[frame["task"] == task], knobs, path)
        paths.append(path)
    return paths


def _draw(frame: pd.DataFrame, knobs: Sequence[str], path: Path) -> None:
    models = list(frame["model"].unique())
    compressed = frame[frame["budget"].notna() & (frame["state"] == "done")]
    variants = list(compressed[list(knobs)].drop_duplicates().itertuples(index=False)) if knobs else []
    variants = variants or [()]  # one panel without a knob's value
    figure = new_figure(path, width=1.2 + 3.6 * len(models), height=0.9 + 2.6 * len(variants))
    panels = figure.subplots(len(variants), len(models), squeeze=False, sharex=True, sharey=True)
    handles: dict[str, Any] = {}
    for column, model in zip(panels.T, models, strict=True):
        full = frame[(frame["model"] == model) & (frame["method"] == REFERENCE)]
        mine = compressed[compressed["model"] == model]
        handles |= _column(column, model, knobs, variants, mine, full)
    metric = str(frame["metric"].dropna().iloc[0]).replace("_", " ") if frame["metric"].notna().any() else ""
    for axes in panels[:, 0]:
        axes.set_ylabel(metric)
    figure.suptitle(str(frame["task"].iloc[0]))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False)
    save_figure(figure, path)


def _column(
    column: Any,
    model: str,
    knobs: Sequence[str],
    variants: Sequence[Any],
    rows: pd.DataFrame,
    full: pd.DataFrame,
) -> dict[str, Any]:
    """Draw a model's panels; variants that it was not run with leave theirs out."""
    handles: dict[str, Any] = {}
    drawn = []
    for axes, variant in zip(column, variants, strict=True):
        chosen = rows
        for name, value in zip(knobs, variant, strict=False):
            chosen = chosen[chosen[name] == value]
        if chosen.empty and (drawn or not rows.empty):
            axes.remove()
            continue
        handles |= _panel(axes, chosen, full)
        axes.set_title(_title(model, knobs, variant), fontsize=9)
        drawn.append(axes)
    drawn[-1].set_xlabel("effective budget: entries kept per KV head")
    drawn[-1].tick_params(labelbottom=True)
    return handles


def _panel(axes: Any, rows: pd.DataFrame, full: pd.DataFrame) -> dict[str, Any]:
    handles = {}
    for method in rows["method"].unique():
        curve = rows[rows["method"] == method].sort_values("effective_budget")
        color, marker = style_of(method).color, MARKERS.get(style_of(method).marker, "o")
        x, low, high = (
            curve[name].astype(float).to_numpy() for name in ("effective_budget", "ci_low", "ci_high")
        )
        axes.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0)
        (handles[title_of(method)],) = axes.plot(
            x, curve["score"].astype(float), color=color, marker=marker, markersize=5, linewidth=1.5
        )
    for score in full["score"].dropna():
        handles[title_of(REFERENCE)] = axes.axhline(score, color="#1f2937", linewidth=1, linestyle="--")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0)
    axes.grid(color="#e5e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return handles


def _title(model: str, knobs: Sequence[str], variant: Sequence[Any]) -> str:
    return ", ".join([model, *(f"{name} {value}" for name, value in zip(knobs, variant, strict=False))])
