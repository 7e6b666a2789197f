"""A study's figures: one drawing for the page, files and W&B, with the methods' colours and markers."""

from __future__ import annotations

import io
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sparsemm_eval.heads.figures.plots import new_figure, save_figure, whole_ticks
from sparsemm_eval.methods.registry import methods
from sparsemm_eval.study.cell_files import CellFiles
from sparsemm_eval.study.columns import of_reference
from sparsemm_eval.study.comparisons import label
from sparsemm_eval.study.method_knobs import REFERENCE, style_of, title_of
from sparsemm_eval.study.tables import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, RULE = "#1c2128", "#d5dae0"
_DASHES = ("-", "--", ":", "-.", (0, (8, 3)), (0, (3, 1, 1, 1, 1, 1)))
_EFFECTIVE = "effective budget: entries kept per KV head"
_TIMES = {
    "decode_seconds_per_token": "decode, ms per token",
    "prefill_seconds_per_sample": "prefill, ms per sample",
}
#: Column -> title and y-axis of its panel; the score's axis is the metric.
_OVER_LENGTHS = {
    "score": ("score", None),
    "agreement_similarity": ("likeness to FullKV's answers", "1 − edit distance / length"),
    "decode_seconds_per_token": (_TIMES["decode_seconds_per_token"], "ms"),
}


@dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes
    ----------
    name : str
        Of its file, without an ending.
    title : str
        Names what is shown, the model and the number of documents; it is part of the figure.
    figure : matplotlib.figure.Figure
    """

    name: str
    title: str
    figure: Figure

    def save(self, folder: Path, ending: str) -> Path:
        """Write ``FOLDER/NAME.ENDING``: png, svg or pdf; equal figures give equal files.

        Raises
        ------
        ConfigError
            For another ending, or if the file cannot be written.
        """
        path = folder / f"{self.name}.{ending}"
        save_figure(self.figure, path)
        return path

    def inline_svg(self) -> str:
        """An ``svg`` element whose ink and rules are the page's ``--ink`` and ``--rule``."""
        from matplotlib import rc_context

        buffer = io.StringIO()
        with rc_context({"svg.hashsalt": self.name, "svg.fonttype": "none"}):
            self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        text = buffer.getvalue()
        text = text[text.index("<svg") :].replace(INK, "var(--ink)").replace(RULE, "var(--rule)")
        # Names that nothing refers to would be those of other pictures of the page as well.
        used = set(re.findall(r"#([\w-]+)", text))
        text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
        return re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)


def pictures(study: Study, files: Sequence[CellFiles] = ()) -> Iterator[Picture]:
    """All figures that a study has something for, model by model.

    Parameters
    ----------
    study : Study
    files : sequence of CellFiles
        For the maps of kept entries.
    """
    done = study.configurations[study.configurations["seeds_done"] > 0]
    for model, part in done.groupby("model", sort=False):
        compressed = _budgeted(part)
        if len(compressed):
            yield _by_task(str(model), "accuracy", "Score against effective budget", part, _accuracy)
        seen = part[part["evidence_recall"].notna()]
        if len(seen):
            yield _by_task(str(model), "evidence", "Score against evidence recall", seen, _recall)
        masked = [name for name in part["method"].unique() if name in methods() and methods()[name].mask]
        if masked:
            rows = part[part["method"].isin(masked) | of_reference(part)]
            draw = _against("mask_ratio", study.knobs)
            yield _by_task(str(model), "masking", "Score against the share of masked heads", rows, draw)
        for knob in study.knobs:
            values = compressed[knob].dropna().unique()
            if len(values) > 2 and all(isinstance(value, (int, float)) for value in values):
                rows = part[part[knob].notna() | of_reference(part)]
                yield _by_task(str(model), knob, f"Score against {knob}", rows, _against(knob, study.knobs))
        for tasks, rows in part.groupby(part["task"].str.replace(r"_\d+$", "", regex=True), sort=False):
            if rows["task"].nunique() > 1:
                yield _lengths(str(model), str(tasks), rows, study.knobs)
        if compressed[list(_TIMES)].notna().any(axis=None):
            yield _times(str(model), part)
        kept = [one for one in files if one.cell["model"] == model and one.record.get("kept_mean")]
        if kept:
            yield _heads(str(model), kept)


def _by_task(
    model: str, name: str, what: str, rows: pd.DataFrame, draw: Callable[[Axes, pd.DataFrame], dict[str, Any]]
) -> Picture:
    tasks = list(rows["task"].unique())
    figure, panels = _panels(len(tasks))
    handles: dict[str, Any] = {}
    for axes, task in zip(panels, tasks, strict=True):
        of_task = rows[rows["task"] == task]
        handles |= draw(axes, of_task)
        _dress(axes, f"{task}, n = {of_task['samples'].max()}", _metric(of_task))
    return _finished(figure, handles, f"{name}-{model}", f"{model}: {what} (95 % intervals)")


def _accuracy(axes: Axes, rows: pd.DataFrame) -> dict[str, Any]:
    """Draws a curve per method and knob values over effective budgets, and FullKV across."""
    handles = _full(axes, rows)
    for name, method, dash, curve in _curves(_budgeted(rows)):
        handles[name] = _line(axes, curve.sort_values("effective_budget"), "effective_budget", method, dash)
    _over_tokens(axes)
    return handles


def _curves(rows: pd.DataFrame) -> Iterator[tuple[str, str, Any, pd.DataFrame]]:
    """Label, method, dashes and rows of every curve; a method's curves differ in their dashes."""
    drawn: Counter[str] = Counter()
    for (name, method), curve in rows.groupby(["label", "method"], sort=False):
        yield str(name), str(method), _DASHES[drawn[str(method)] % len(_DASHES)], curve
        drawn[str(method)] += 1


def _metric(rows: pd.DataFrame) -> str:
    return str(rows["metric"].iloc[0]).replace("_", " ")


def _budgeted(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["budget"].notna()]


def _over_tokens(axes: Axes, name: str = _EFFECTIVE) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(name)


def _against(knob: str, crossed: Iterable[str]) -> Callable[[Axes, pd.DataFrame], dict[str, Any]]:
    """Draws the score over a knob's values, a line per method, budget and other knobs, and FullKV across."""
    others = [name for name in crossed if name != knob]

    def draw(axes: Axes, rows: pd.DataFrame) -> dict[str, Any]:
        handles, rest = _full(axes, rows), rows[~of_reference(rows)]
        for name, method, dash, line in _curves(_by_budget(rest, others)):
            handles[name] = _line(axes, line.sort_values(knob), knob, method, dash)
        axes.set_xlabel(knob.replace("_", " "))
        return handles

    return draw


def _by_budget(rows: pd.DataFrame, knobs: Sequence[str]) -> pd.DataFrame:
    """Rows whose labels name the budget too, beside method and knobs."""
    names = [
        label(row["method"], {knob: row[knob] for knob in knobs})
        + ("" if pd.isna(row["budget"]) else f", budget {row['budget']}")
        for _, row in rows.iterrows()
    ]
    return rows.assign(label=names)


def _lengths(model: str, tasks: str, rows: pd.DataFrame, knobs: Sequence[str]) -> Picture:
    """Score, likeness and time over the prompt's length, of tasks whose names differ in a number alone."""
    figure, panels = _panels(len(_OVER_LENGTHS))
    rows = _by_budget(rows, knobs)
    handles: dict[str, Any] = {}
    for axes, (column, (name, y)) in zip(panels, _OVER_LENGTHS.items(), strict=True):
        scale = 1000 if column in _TIMES else 1
        for of_curve, method, dash, line in _curves(rows[rows[column].notna()]):
            line = line.sort_values("full_budget")
            handles[of_curve] = _line(axes, line, "full_budget", method, dash, column, scale)
        _over_tokens(axes, "prompt tokens, mean over documents")
        _dress(axes, name, y or _metric(rows))
    title = f"{model}: {tasks} over the prompt's length, n = {rows['samples'].max()} (scores: 95 % intervals)"
    return _finished(figure, handles, f"lengths-{tasks}-{model}", f"{title}; times are no benchmark")


def _recall(axes: Axes, rows: pd.DataFrame) -> dict[str, Any]:
    """Draws the score over evidence recall, a curve per method and knobs, with the chance level."""
    handles = _full(axes, rows)
    for name, method, dash, curve in _curves(_budgeted(rows)):
        curve, style = curve.sort_values("budget"), style_of(method)
        handles[name] = _line(axes, curve, "evidence_recall", method, dash)
        for row in curve.itertuples():
            pair = [row.evidence_chance, row.evidence_recall], [row.score] * 2
            axes.plot(*pair, color=style.color, linewidth=0.8, linestyle=":")
            axes.plot(
                pair[0][0], row.score, style.marker, color=style.color, markersize=5.5, fillstyle="none"
            )
    axes.set_xlim(0, 1.03)
    axes.set_xlabel("evidence recall (weighted share); hollow: by chance")
    return handles


def _line(
    axes: Axes, rows: pd.DataFrame, x: str, method: str, dash: str, y: str = "score", scale: float = 1
) -> Any:
    """A curve with its intervals: a band, or bars where there is a single point."""
    style = style_of(method)
    xs, ys = rows[x].astype(float).to_numpy(), scale * rows[y].astype(float).to_numpy()
    if y == "score":
        low, high = (rows[name].astype(float).to_numpy() for name in ("ci_low", "ci_high"))
        if len(rows) > 1:
            axes.fill_between(xs, low, high, color=style.color, alpha=0.08, linewidth=0)
        else:
            axes.errorbar(xs, ys, yerr=[ys - low, high - ys], color=style.color, capsize=3, linewidth=1)
    (line,) = axes.plot(
        xs, ys, color=style.color, marker=style.marker, markersize=5.5, linewidth=1.5, linestyle=dash
    )
    return line


def _full(axes: Axes, rows: pd.DataFrame, y: str = "score", scale: float = 1) -> dict[str, Any]:
    """FullKV's value as a line across, with its interval."""
    handles = {}
    for row in rows[of_reference(rows)].itertuples():
        if y == "score" and not pd.isna(row.ci_low):
            axes.axhspan(row.ci_low, row.ci_high, color=INK, alpha=0.06, linewidth=0)
        handles[title_of(REFERENCE)] = axes.axhline(
            scale * getattr(row, y), color=INK, linewidth=1, linestyle=(0, (5, 3))
        )
    return handles


def _times(model: str, rows: pd.DataFrame) -> Picture:
    figure, panels = _panels(len(_TIMES))
    handles: dict[str, Any] = {}
    for axes, (column, name) in zip(panels, _TIMES.items(), strict=True):
        means = rows.groupby(["label", "method", "budget"], dropna=False, sort=False)[
            ["effective_budget", column]
        ]
        table = means.mean().reset_index()
        handles |= _full(axes, table, column, 1000)
        for of_curve, method, dash, line in _curves(_budgeted(table)):
            line = line.sort_values("effective_budget")
            handles[of_curve] = _line(axes, line, "effective_budget", method, dash, column, 1000)
        _over_tokens(axes)
        _dress(axes, name, "ms")
    title = f"{model}: times during these runs, with all else the machine did; not a benchmark"
    return _finished(figure, handles, f"times-{model}", title)


def _heads(model: str, files: Sequence[CellFiles]) -> Picture:
    """Entries kept by every KV head, one map per method at the budget in the middle."""
    budgets = sorted({one.cell["budget"] for one in files if one.cell["budget"] is not None})
    middle = budgets[(len(budgets) - 1) // 2] if budgets else None
    chosen: dict[str, CellFiles] = {}
    for one in files:
        if one.cell["budget"] == middle:
            chosen.setdefault(one.cell["method"], one)
    figure, panels = _panels(len(chosen), 3, size=(3.0, 2.4), margin=(0.8, 0.8))
    most = max(max(map(max, one.record["kept_mean"])) for one in chosen.values())
    picture = None
    for axes, (method, one) in zip(panels, chosen.items(), strict=True):
        picture = axes.imshow(one.record["kept_mean"], cmap="cividis", vmin=0, vmax=most, aspect="auto")
        axes.set_title(title_of(method), fontsize=10, color=INK)
        axes.set(xlabel="KV head", ylabel="layer")
        axes.set_xticks(whole_ticks(len(one.record["kept_mean"][0])))
        axes.set_yticks(whole_ticks(len(one.record["kept_mean"])))
    figure.colorbar(picture, ax=panels, label="entries kept, mean over documents")
    return _finished(
        figure, {}, f"heads-{model}", f"{model}: entries kept by every KV head, nominal budget {middle}"
    )


def _panels(
    count: int,
    beside: int = 2,
    size: tuple[float, float] = (4.4, 2.9),
    margin: tuple[float, float] = (0.6, 1.1),
) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes, up to ``beside`` of them beside each other; size and margin in inches."""
    columns = min(beside, count)
    lines = -(-count // columns)
    figure = new_figure("figure.svg", margin[0] + size[0] * columns, margin[1] + size[1] * lines)
    panels = list(figure.subplots(lines, columns, squeeze=False).ravel())
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def _dress(axes: Axes, title: str, y: str) -> None:
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_ylabel(y)
    axes.set_ylim(bottom=0)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _finished(figure: Figure, handles: dict[str, Any], name: str, title: str) -> Picture:
    inch = 12  # characters of this size
    figure.suptitle(textwrap.fill(title, int(inch * figure.get_figwidth())), fontsize=11, color=INK)
    for axes in figure.axes:
        axes.tick_params(colors=INK, labelsize=9)
        for part in (axes.xaxis.label, axes.yaxis.label):
            part.set(color=INK, fontsize=9)
        for spine in axes.spines.values():
            spine.set_edgecolor(INK)
    if handles:
        longest = max(map(len, map(str, handles)))
        columns = max(1, int(figure.get_figwidth() // max(2.4, 0.6 + 0.07 * longest)))
        rows = -(-len(handles) // columns)  # beyond three they must not take the axes' height
        figure.set_figheight(figure.get_figheight() + 0.2 * max(rows - 3, 0))
        found = figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            handlelength=3,
            fontsize=9,
        )
        for text in found.get_texts():
            text.set_color(INK)
    return Picture(re.sub(r"[^\w.-]+", "_", name), title, figure)
