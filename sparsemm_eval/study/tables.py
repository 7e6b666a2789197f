"""The paper's tables from a study: main table, ablations and rho, with published numbers beside ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.methods import published
from sparsemm_eval.methods.base import Published
from sparsemm_eval.methods.registry import methods
from sparsemm_eval.study.columns import crossed_knobs
from sparsemm_eval.study.seeds import configurations

MISSING = "–"
_INTERVAL_NOTE = (
    "± half the 95 % confidence interval (bootstrap over documents; seeds averaged per document). eff. = KV "
    "entries kept per KV head, mean over documents: compare methods at equal eff., not nominal budget."
)
_RHO_MEANING = {0.0: "window + score", 1.0: "window + uniform"}


@dataclass(frozen=True)
class Table:
    """One table, ready to be written in any format.

    Attributes
    ----------
    title : str
    columns : list of str
    rows : list of list of str
        Cells as text.
    records : list of dict
        The same with numbers, for JSON.
    notes : list of str
        Below the table.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    records: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)


def main_tables(cells: pd.DataFrame, samples: pd.DataFrame) -> list[Table]:
    """Method × budget against tasks, one table per model; configurations without a score say why.

    Parameters
    ----------
    cells, samples : pandas.DataFrame
        Of `results.collect`.
    """
    found = configurations(cells, samples)
    knobs = crossed_knobs(cells)
    return [_main(str(model), part, knobs) for model, part in found.groupby("model", sort=False)]


def _main(model: str, part: pd.DataFrame, knobs: list[str]) -> Table:
    tasks = list(part["task"].unique())
    papers = {task: _papers(part[part["task"] == task]) for task in tasks}
    columns = ["method", "budget", *knobs]
    for task in tasks:
        columns += [task, "eff."] + (["published"] if papers[task] else [])
    rows, sources = [], {}
    for _, group in part.groupby(["method", "budget", *knobs], dropna=False, sort=False):
        first = group.iloc[0]
        by_task = {row["task"]: row for _, row in group.iterrows()}
        line = [first["method"], _budget(first["budget"]), *(_value(first[name]) for name in knobs)]
        for task in tasks:
            line += [_score(by_task.get(task)), _effective(by_task.get(task))]
            if papers[task]:
                numbers = [] if task not in by_task else _published(by_task[task])
                marks = [sources.setdefault(row.source, len(sources) + 1) for row in numbers]
                pairs = zip(numbers, marks, strict=True)
                line.append(", ".join(f"{row.score:.3g} [{mark}]" for row, mark in pairs) or MISSING)
        rows.append(line)
    notes = [_INTERVAL_NOTE, *_notes(part), *(f"[{mark}] {source}" for source, mark in sources.items())]
    if any(method in methods() and methods()[method].mask for method in part["method"].unique()):
        notes += published.MASK_NOTES
    return Table(f"Scores: {model}", columns, rows, [_record(row) for _, row in part.iterrows()], notes)


def knob_tables(cells: pd.DataFrame, samples: pd.DataFrame, names: Iterable[str]) -> list[Table]:
    """A crossed knob's values side by side, one table per model, knob and task.

    Parameters
    ----------
    cells, samples : pandas.DataFrame
        Of `results.collect`.
    names : iterable of str
        Knobs; those with one value only, in the study or with a model, give no table.
    """
    found = configurations(cells, samples)
    crossed = crossed_knobs(cells)
    return [
        _pivot(str(model), str(task), part, name, [other for other in crossed if other != name])
        for name in names
        if name in crossed
        for (model, task), part in found.dropna(subset=[name]).groupby(["model", "task"], sort=False)
        if part[name].nunique() > 1
    ]


def _pivot(model: str, task: str, part: pd.DataFrame, name: str, others: list[str]) -> Table:
    values = sorted(part[name].unique())
    heads = [f"{name}={_value(value)}" for value in values]
    if name == "ratio":
        heads = [_rho_head(value) for value in values]
    rows = []
    for _, group in part.groupby(["method", "budget", *others], dropna=False, sort=False):
        first = group.iloc[0]
        by_value = {row[name]: row for _, row in group.iterrows()}
        line = [first["method"], _budget(first["budget"]), *(_value(first[other]) for other in others)]
        for value in values:
            line += [_score(by_value.get(value)), _effective(by_value.get(value))]
        rows.append(line)
    columns = ["method", "budget", *others, *(part for head in heads for part in (head, "eff."))]
    notes = [_INTERVAL_NOTE, *_notes(part)]
    if name == "ratio":
        notes += [*published.RHO_NOTES, *published.ABLATION_NOTES]
    title = f"{'Score against ρ' if name == 'ratio' else f'Ablation of {name}'}: {model}, {task}"
    return Table(title, columns, rows, [_record(row) for _, row in part.iterrows()], notes)


def _rho_head(value: float) -> str:
    meaning = _RHO_MEANING.get(float(value))
    return f"ρ={_value(value)}" + (f" ({meaning})" if meaning else "")


def of_kind(cells: pd.DataFrame, samples: pd.DataFrame, kind: str) -> list[Table]:
    """Tables by the name that the command line gives them: main, ablation, rho or all.

    ``ablation`` is every crossed knob but rho; ``all`` leaves out what the study does not have.
    """
    if kind not in KINDS:
        raise ConfigError("table", kind, "one of " + ", ".join(KINDS))
    others = [name for name in crossed_knobs(cells) if name != "ratio"]
    parts: dict[str, Callable[[], list[Table]]] = {
        "main": lambda: main_tables(cells, samples),
        "ablation": lambda: knob_tables(cells, samples, others),
        "rho": lambda: knob_tables(cells, samples, ["ratio"]),
    }
    wanted = parts if kind == "all" else (kind,)
    return [table for name in wanted for table in parts[name]()]


KINDS = ("main", "ablation", "rho", "all")


def _papers(part: pd.DataFrame) -> bool:
    return any(_published(row) for _, row in part.iterrows())


def _published(row: pd.Series) -> list[Published]:
    """Published scores of exactly this checkpoint, method, task and nominal budget; usually one or none."""
    budget = None if pd.isna(row["budget"]) else int(row["budget"])
    known = methods()[row["method"]].published if row["method"] in methods() else ()
    wanted = (row["pretrained"], row["task"], budget)
    return [one for one in known if (one.pretrained, one.task, one.budget) == wanted]


def _notes(part: pd.DataFrame) -> list[str]:
    notes = []
    for (task, note), _ in part[part["note"] != ""].groupby(["task", "note"], sort=False):
        notes.append(f"{task}: {note}.")
    if (part["seeds"] > 1).any():
        notes.append("Methods with several seeds: mean over the seeds that are done.")
    partial = part[(part["seeds_done"] > 0) & (part["state"] != "done")]
    if len(partial):
        notes.append(f"* not all seeds are done ({len(partial)} configurations).")
    return notes


def _score(row: pd.Series | None) -> str:
    if row is None:
        return MISSING
    if not row["seeds_done"]:
        return str(row["state"])
    text = f"{row['score']:.3f}"
    if not pd.isna(row["ci_low"]):
        text += f" ± {(row['ci_high'] - row['ci_low']) / 2:.3f}"
    return text + ("" if row["state"] == "done" else " *")


def _effective(row: pd.Series | None) -> str:
    return MISSING if row is None or pd.isna(row["effective_budget"]) else f"{row['effective_budget']:.1f}"


def _budget(value: Any) -> str:
    return "all" if pd.isna(value) else str(int(value))


def _value(value: Any) -> str:
    if pd.isna(value):
        return MISSING
    return f"{value:g}" if isinstance(value, float) else str(value)


def _record(row: pd.Series) -> dict[str, Any]:
    record = {name: _plain(value) for name, value in row.items()}
    record["published"] = [{"score": entry.score, "source": entry.source} for entry in _published(row)]
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return value
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value
