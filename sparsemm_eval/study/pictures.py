"""A study's figures: one drawing for the page, files and W&B, with the methods' colours and markers."""

from __future__ import annotations

import io
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from sparsemm_eval.heads.figures.plots import new_figure, whole_ticks
from sparsemm_eval.methods.base import Style
from sparsemm_eval.study.cell_files import CellFiles
from sparsemm_eval.study.columns import of_reference
from sparsemm_eval.study.comparisons import label
from sparsemm_eval.study.method_knobs import REFERENCE, style_of, title_of
from sparsemm_eval.study.tables import Study, masking_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, RULE = "#1c2128", "#d5dae0"
#: More names of curves than this stand in two columns or more, under a single panel too.
_FEW = 8
_DASHES = ("-", "--", ":", "-.", (0, (8, 3)), (0, (3, 1, 1, 1, 1, 1)))
#: Names of x-axes; any other is a knob's.
_AXES = {
    "effective_budget": "effective budget: entries kept per KV head",
    "full_budget": "prompt tokens, mean over documents",
    "evidence_recall": "evidence recall (weighted share); hollow: by chance",
}
_TIMES = {
    "decode_seconds_per_token": "decode, ms per token",
    "prefill_seconds_per_sample": "prefill, ms per sample",
}


@dataclass(frozen=True)
class Picture:
    """One figure."""

    name: str  # of its file, without an ending
    title: str  # names what is shown, the model and the number of documents; it is part of the figure
    figure: Figure

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
    """All figures that a study has something for, model by model; ``files`` are for the maps of entries."""
    done = study.configurations[study.configurations["seeds_done"] > 0]
    for name, part in done.groupby("model", sort=False):
        model = str(name)
        compressed = part[part["budget"].notna()]
        if len(compressed):
            yield _by_task(model, "accuracy", "effective budget", part, compressed, "effective_budget")
        seen = part[part["evidence_recall"].notna()]
        if len(seen):
            curves = seen[seen["budget"].notna()]
            yield _by_task(model, "evidence", "evidence recall", seen, curves, "evidence_recall")
        masked = masking_rows(part)
        if len(masked):
            curves = _by_budget(masked, study.knobs, "mask_ratio")
            yield _by_task(model, "masking", "the share of masked heads", part, curves, "mask_ratio")
        for knob in study.knobs:
            values = compressed[knob].dropna().unique()
            if len(values) > 2 and all(isinstance(value, (int, float)) for value in values):
                rows = part[part[knob].notna() & ~of_reference(part)]
                yield _by_task(model, knob, knob, part, _by_budget(rows, study.knobs, knob), knob)
        for tasks, rows in part.groupby(part["task"].str.replace(r"_\d+$", "", regex=True), sort=False):
            if rows["task"].nunique() > 1:
                yield _lengths(model, str(tasks), rows, study.knobs)
        if compressed[list(_TIMES)].notna().any(axis=None):
            yield _times(model, part)
        kept = [one for one in files if one.cell["model"] == model and one.record.get("kept_mean")]
        if kept:
            yield _heads(model, kept)


@dataclass(frozen=True)
class _Panel:
    """One column over another: a curve for every label, and what FullKV has across."""

    title: str
    unit: str
    curves: pd.DataFrame
    x: str
    y: str = "score"
    full: pd.DataFrame | None = None

    @property
    def scale(self) -> float:
        """From seconds to milliseconds."""
        return 1000 if self.y in _TIMES else 1


def _by_task(model: str, name: str, what: str, part: pd.DataFrame, curves: pd.DataFrame, x: str) -> Picture:
    """Scores over something, a panel for each task that has curves or FullKV."""
    rows = part.loc[part.index.isin(curves.index) | of_reference(part)]
    panels = [
        _Panel(
            f"{task}, n = {of_task['samples'].max()}",
            _metric(of_task),
            curves[curves["task"] == task],
            x,
            full=of_task[of_reference(of_task)],
        )
        for task, of_task in rows.groupby("task", sort=False)
    ]
    return _figure(f"{name}-{model}", f"{model}: Score against {what} (95 % intervals)", panels)


def _metric(rows: pd.DataFrame) -> str:
    return str(rows["metric"].iloc[0]).replace("_", " ")


def _by_budget(rows: pd.DataFrame, knobs: Sequence[str], across: str = "") -> pd.DataFrame:
    """Rows whose labels name the budget too, beside method and the knobs that are not on the x-axis."""
    others = [knob for knob in knobs if knob != across]
    names = [
        label(row["method"], row[others]) + ("" if pd.isna(row["budget"]) else f", budget {row['budget']}")
        for _, row in rows.iterrows()
    ]
    return rows.assign(label=names)


def _lengths(model: str, tasks: str, rows: pd.DataFrame, knobs: Sequence[str]) -> Picture:
    """Score, likeness and time over the prompt's length, of tasks whose names differ in a number alone."""
    rows = _by_budget(rows, knobs)
    kinds = {
        "score": ("score", _metric(rows)),
        "agreement_similarity": ("likeness to FullKV's answers", "1 − edit distance / length"),
        "decode_seconds_per_token": (_TIMES["decode_seconds_per_token"], "ms"),
    }
    panels = [
        _Panel(*names, rows[rows[column].notna()], "full_budget", column) for column, names in kinds.items()
    ]
    title = f"{model}: {tasks} over the prompt's length, n = {rows['samples'].max()} (scores: 95 % intervals)"
    return _figure(f"lengths-{tasks}-{model}", f"{title}; times are no benchmark", panels)


def _times(model: str, rows: pd.DataFrame) -> Picture:
    columns = ["effective_budget", *_TIMES]
    keys = ["label", "method", "budget", "is_full"]
    means = rows.assign(is_full=of_reference(rows)).groupby(keys, dropna=False, sort=False)[columns].mean()
    table = means.reset_index()
    curves, full = table[table["budget"].notna()], table[table["is_full"]]
    panels = [_Panel(name, "ms", curves, "effective_budget", column, full) for column, name in _TIMES.items()]
    title = f"{model}: times during these runs, with all else the machine did; not a benchmark"
    return _figure(f"times-{model}", title, panels)


def _figure(name: str, title: str, panels: Sequence[_Panel]) -> Picture:
    figure, places = _panels(len(panels))
    handles: dict[str, Any] = {}
    for axes, panel in zip(places, panels, strict=True):
        if panel.full is not None:
            handles |= _across(axes, panel)
        drawn: Counter[str] = Counter()
        for (of_curve, method), curve in panel.curves.groupby(["label", "method"], sort=False):
            # A method's curves differ in their dashes.
            dash = _DASHES[drawn[method] % len(_DASHES)]
            drawn[method] += 1
            handles[str(of_curve)] = _line(axes, panel, curve, style_of(method), dash)
        if panel.x in ("effective_budget", "full_budget"):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
        if panel.x == "evidence_recall":
            axes.set_xlim(0, 1.03)
        axes.set_xlabel(_AXES.get(panel.x, panel.x.replace("_", " ")))
        axes.set_title(panel.title, fontsize=10, color=INK)
        axes.set_ylabel(panel.unit)
        axes.set_ylim(bottom=0)
        axes.grid(color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return _finished(figure, handles, name, title)


def _line(axes: Axes, panel: _Panel, rows: pd.DataFrame, style: Style, dash: Any) -> Any:
    """A curve; of scores with intervals, a band or bars at a single point, and of recall with chance."""
    rows = rows.sort_values("budget" if panel.x == "evidence_recall" else panel.x)
    xs, ys = rows[panel.x].astype(float).to_numpy(), panel.scale * rows[panel.y].astype(float).to_numpy()
    if panel.y == "score":
        low, high = (rows[name].astype(float).to_numpy() for name in ("ci_low", "ci_high"))
        if len(rows) > 1:
            axes.fill_between(xs, low, high, color=style.color, alpha=0.08, linewidth=0)
        else:
            axes.errorbar(xs, ys, yerr=[ys - low, high - ys], color=style.color, capsize=3, linewidth=1)
    look = {"color": style.color, "marker": style.marker, "markersize": 5.5}
    (line,) = axes.plot(xs, ys, **look, linewidth=1.5, linestyle=dash)
    if panel.x == "evidence_recall":
        chance = rows["evidence_chance"].astype(float)
        axes.plot([chance, xs], [ys, ys], color=style.color, linewidth=0.8, linestyle=":")
        axes.plot([chance], [ys], **look, linestyle="none", fillstyle="none")
    return line


def _across(axes: Axes, panel: _Panel) -> dict[str, Any]:
    """FullKV's value as a line across, with its interval."""
    handles = {}
    for row in panel.full.itertuples():
        if panel.y == "score" and not pd.isna(row.ci_low):
            axes.axhspan(row.ci_low, row.ci_high, color=INK, alpha=0.06, linewidth=0)
        value = panel.scale * getattr(row, panel.y)
        handles[title_of(REFERENCE)] = axes.axhline(value, color=INK, linewidth=1, linestyle=(0, (5, 3)))
    return handles


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
        room = max(2.4, 0.6 + 0.07 * max(map(len, map(str, handles))))  # inches of one column
        if len(handles) > _FEW:
            figure.set_figwidth(max(figure.get_figwidth(), 2 * room))
        columns = max(1, int(figure.get_figwidth() // room))
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
