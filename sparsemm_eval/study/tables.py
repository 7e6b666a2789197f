"""A study's tables: who wins at equal effective budgets, the paper's tables, and what masking costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from sparsemm_eval.errors import ConfigError, one_of
from sparsemm_eval.methods import published, sparsemm
from sparsemm_eval.methods.base import Published
from sparsemm_eval.methods.registry import methods
from sparsemm_eval.study.columns import crossed_knobs, of_reference
from sparsemm_eval.study.comparisons import (
    MEAN,
    SURROUNDINGS,
    against_full,
    at_equal_budgets,
    configurations,
    paired,
)
from sparsemm_eval.study.json_values import plain
from sparsemm_eval.study.method_knobs import REFERENCE, title_of
from sparsemm_eval.study.statistics import holm

MISSING = "–"
_INTERVALS = (
    "[95 % interval]: documents that share images are one cluster, and seeds are drawn at random as "
    "documents are. n = documents."
)
_EFFECTIVE = (
    "eff. = KV entries kept per KV head, mean over documents; the nominal budget is what a method was "
    "allowed. Compare methods at equal eff.: the headline table does."
)
_RHO_MEANING = {0.0: "window + score", 1.0: "window + uniform"}


@dataclass(frozen=True)
class Table:
    """One table, ready to be written in any format."""

    title: str
    columns: list[str]
    rows: list[list[str]]  # cells as text
    records: list[dict[str, Any]]  # the same with numbers, for JSON
    notes: list[str] = field(default_factory=list)  # below the table
    bold: frozenset[tuple[int, int]] = frozenset()  # row and column of cells that are best


@dataclass(frozen=True)
class Study:
    """Results with what all tables are made of."""

    configurations: pd.DataFrame  # of `comparisons.configurations`
    equal: pd.DataFrame  # of `comparisons.at_equal_budgets`
    knobs: list[str]  # crossed ones
    against: str  # the label that the paired table compares with the others

    @classmethod
    def of(cls, cells: pd.DataFrame, samples: pd.DataFrame, against: str | None = None) -> Study:
        """From the frames of `results.collect`; ``against`` is a label or the name of a method.

        Raises
        ------
        ConfigError
            If ``against`` is neither.
        """
        frame = configurations(cells, samples)
        frame["published"] = [_published(row) for _, row in frame.iterrows()]
        equal = at_equal_budgets(frame)
        # those that can be compared, so that a method's name means one of them
        labels = list(dict.fromkeys((equal if len(equal) else frame[frame["budget"].notna()])["label"]))
        by_method = {row.method: row.label for row in frame[::-1].itertuples() if row.label in labels}
        chosen = by_method.get(against or sparsemm.METHOD.name, against or (labels or [""])[0])
        if against is not None and chosen not in labels:
            raise ConfigError("against", against, one_of(against, [*by_method, *labels]))
        return cls(frame, equal, crossed_knobs(cells), chosen)


def headline_tables(study: Study) -> list[Table]:
    """Scores at common effective budgets, one table per model and task, and over tasks; the best in bold."""
    tables = []
    groups = dict(iter(study.equal.groupby(["model", "task"], sort=False)))
    models = list(dict.fromkeys(model for model, _ in groups))
    order = list(dict.fromkeys(study.configurations["label"]))
    # Over tasks first: it is what a reader asks first.
    for model, task in sorted(groups, key=lambda key: (models.index(key[0]), key[1] != MEAN)):
        # A curve that begins beyond the first budget keeps its place.
        part = groups[model, task].sort_values(
            "label", key=lambda names: names.map(order.index), kind="stable"
        )
        budgets = sorted(part["target"].unique())
        rows, bold = [], set()
        for name, of_label in part.groupby("label", sort=False):
            by_target = {row.target: row for row in of_label.itertuples()}
            rows.append([str(name), *(_interval(by_target.get(target)) for target in budgets)])
            bold |= {
                (len(rows) - 1, 1 + i) for i, t in enumerate(budgets) if t in by_target and by_target[t].best
            }
        notes = [*_winners(study, str(model), str(task)), _INTERVALS, *_full(study, str(model), str(task))]
        notes.append(
            "Columns are effective budgets. Between the budgets that were run, each document's score is "
            "interpolated over the logarithm of the effective budget; – is beyond "
            "what was run."
        )
        frame = study.configurations
        notes += _mixed(frame[(frame["model"] == model) & ((frame["task"] == task) | (task == MEAN))])
        columns = ["at equal effective budget", *(f"{target:g}" for target in budgets)]
        records = part.drop(columns="scores").to_dict("records")
        tables.append(
            Table(f"{model}, {task}", columns, rows, list(map(plain, records)), notes, frozenset(bold))
        )
    return tables


def _winners(study: Study, model: str, task: str) -> list[str]:
    """One sentence for every budget: the best against the best of another method, with their difference."""
    part = study.equal[(study.equal["model"] == model) & (study.equal["task"] == task)]
    best = [group.sort_values("score", ascending=False) for _, group in part.groupby("target")]
    found = []
    for group in (group for group in best if len(group) > 1):
        others = group[group["method"] != group["method"].iloc[0]]
        if others.empty:
            continue
        first, second = group["label"].iloc[0], others["label"].iloc[0]
        same = study.equal[
            (study.equal["model"] == model) & (study.equal["target"] == group["target"].iloc[0])
        ]
        rows = paired(same[same["label"].isin([first, second])], first)
        row = rows[rows["task"] == task] if len(rows) else rows
        if len(row):
            found.append(row.iloc[0])
    corrected = holm([row["p"] for row in found])
    return [
        f"At {row['target']:g}: {row['label']} {'leads' if p < 0.05 else 'is not told apart from'} "
        f"{row['other']}, {_difference(row)}, p {_p_value(p)} "
        f"(corrected for {len(found)} comparison{'s' if len(found) > 1 else ''}), n = {row['documents']}, "
        f"least detectable difference {row['detectable']:.2g}."
        for row, p in zip(found, corrected, strict=True)
    ]


def _p_value(p: float) -> str:
    """``= 0.03``; below 1e-9 a p-value says more of a test's assumptions than of the methods."""
    return "< 1e-09" if p < 1e-9 else f"= {p:.2g}"


def paired_tables(study: Study) -> list[Table]:
    """Paired differences of one configuration to all others at equal effective budgets, a table per model."""
    found = paired(study.equal, study.against)
    if found.empty:
        return []
    found = found.assign(p_holm=holm(found["p"]))
    tables = []
    for model, part in found.groupby("model", sort=False):
        rows = [
            [
                *(str(row["task"]), f"{row['target']:g}", str(row["other"]), _difference(row)),
                *(_p_value(row[name]).removeprefix("= ") for name in ("p", "p_holm")),
                *(str(row["documents"]), f"{row['detectable']:.2g}"),
            ]
            for _, row in part.iterrows()
        ]
        notes = [
            f"Score of {study.against} less that of the other on the same documents, with its 95 % interval; "
            "p by McNemar's exact test for right and wrong answers, else by flipping signs, or by a t test "
            f"where seeds vary; Holm's correction is over all {len(found)} comparisons. Detectable: the "
            "least difference found in four of five cases."
        ]
        columns = ["task", "eff.", "other", "difference", "p", "p (Holm)", "n", "detectable"]
        records = list(map(plain, part.to_dict("records")))
        tables.append(Table(f"{model}: {study.against} against the others", columns, rows, records, notes))
    return tables


def main_tables(study: Study) -> list[Table]:
    """Method × nominal budget against tasks, one table per model; configurations without a score say why."""
    tables = []
    for model, part in study.configurations.groupby("model", sort=False):
        heads = {task: task for task in part["task"].unique()}
        notes = published.MASK_NOTES if len(masking_rows(part)) else ()
        tables.append(_side_by_side(f"Scores: {model}", part, study.knobs, "task", heads, notes))
    return tables


def knob_tables(study: Study, names: Iterable[str]) -> list[Table]:
    """A crossed knob's values side by side, one table per model, knob and task.

    Knobs with one value only, in the study or with a model, give no table.
    """
    tables = []
    for name in (name for name in names if name in study.knobs):
        others = [other for other in study.knobs if other != name]
        what = "Score against ρ" if name == "ratio" else f"Ablation of {name}"
        notes = [*published.RHO_NOTES, *published.ABLATION_NOTES] if name == "ratio" else ()
        known = study.configurations.dropna(subset=[name])
        for (model, task), part in known.groupby(["model", "task"], sort=False):
            heads = {value: _head(name, value) for value in sorted(part[name].unique())}
            if len(heads) > 1:
                tables.append(_side_by_side(f"{what}: {model}, {task}", part, others, name, heads, notes))
    return tables


def _head(knob: str, value: Any) -> str:
    if knob != "ratio":
        return f"{knob}={_value(value)}"
    meaning = _RHO_MEANING.get(float(value))
    return f"ρ={_value(value)}" + (f" ({meaning})" if meaning else "")


def _side_by_side(
    title: str,
    part: pd.DataFrame,
    knobs: Sequence[str],
    across: str,
    heads: Mapping[Any, str],
    further: Iterable[str],
) -> Table:
    """Scores for the values of one column, a line per method, budget and knobs; tasks with published ones."""
    papers = {value for value, rows in part.groupby(across) if across == "task" and any(rows["published"])}
    columns = ["method", "budget", *knobs]
    for value, head in heads.items():
        columns += [head, "eff.", *(["published"] if value in papers else [])]
    sources: dict[str, int] = {}
    rows = []
    for _, group in part.groupby(["method", "budget", *knobs], dropna=False, sort=False):
        first = group.iloc[0]
        line = [first["method"], _budget(first["budget"]), *(_value(first[knob]) for knob in knobs)]
        by_value = {row[across]: row for _, row in group.iterrows()}
        for value in heads:
            row = by_value.get(value)
            line += _score_and_budget(row)
            if value in papers:
                found = [] if row is None else row["published"]
                marks = [sources.setdefault(one.source, len(sources) + 1) for one in found]
                pairs = zip(found, marks, strict=True)
                line.append(", ".join(f"{one.score:.3g} [{mark}]" for one, mark in pairs) or MISSING)
        rows.append(line)
    notes = [_INTERVALS, _EFFECTIVE, *_notes(part)]
    notes += [*(f"[{mark}] {source}" for source, mark in sources.items()), *further]
    return Table(title, columns, rows, _records(part), notes)


def masking_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of methods that mask heads."""
    names = [name for name, method in methods().items() if method.mask]
    return frame[frame["method"].isin(names)]


def masking_tables(study: Study) -> list[Table]:
    """What masking a share of the heads costs against FullKV, one table per model and task."""
    frame = study.configurations
    if masking_rows(frame).empty:
        return []
    frame = frame.assign(loss=against_full(frame))
    tables = []
    for (model, task), part in masking_rows(frame).groupby(["model", "task"], sort=False):
        rows = [
            [
                title_of(row["method"]),
                *(_value(row[name]) for name in study.knobs),
                str(row["seeds_done"]),
                _score(row),
                MISSING if row["loss"] is None else _difference(row["loss"].__dict__),
            ]
            for _, row in part.iterrows()
        ]
        columns = ["masked heads", *study.knobs, "draws", "score", "less than FullKV by"]
        notes = [_INTERVALS, "Negative: below FullKV, on the same documents."]
        notes += [*_full(study, str(model), str(task)), *_notes(part), *published.MASK_NOTES]
        tables.append(Table(f"Masking: {model}, {task}", columns, rows, _records(part), notes))
    return tables


def of_kind(study: Study, kind: str) -> list[Table]:
    """Tables by the name that the command line gives them; ``all`` leaves out what the study does not have.

    ``ablation`` is every crossed knob but ρ; where ρ alone is crossed, as in the paper's ablation, all rows.
    """
    others = [name for name in study.knobs if name != "ratio"]
    parts: dict[str, Callable[[], list[Table]]] = {
        "headline": lambda: headline_tables(study),
        "paired": lambda: paired_tables(study),
        "main": lambda: main_tables(study),
        "ablation": lambda: knob_tables(study, others) or (main_tables(study) if kind == "ablation" else []),
        "rho": lambda: knob_tables(study, ["ratio"]),
        "masking": lambda: masking_tables(study),
    }
    if kind not in KINDS:
        raise ConfigError("table", kind, one_of(kind, KINDS))
    wanted = parts if kind == "all" else (kind,)
    return [table for name in wanted for table in parts[name]()]


KINDS = ("headline", "paired", "main", "ablation", "rho", "masking", "all")


def _published(row: pd.Series) -> list[Published]:
    """Published scores of exactly this checkpoint, method, task and nominal budget, beside all documents."""
    if row["limited"]:
        return []
    budget = None if pd.isna(row["budget"]) else int(row["budget"])
    known = methods()[row["method"]].published if row["method"] in methods() else ()
    wanted = (row["pretrained"], row["task"], budget)
    return [one for one in known if (one.pretrained, one.task, one.budget) == wanted]


def _notes(part: pd.DataFrame) -> list[str]:
    notes = []
    for (task, note), _ in part[part["note"] != ""].groupby(["task", "note"], sort=False):
        notes.append(f"{task}: {note}.")
    limited = part[part["limited"]]
    if len(limited):
        notes.append(
            f"Some of the documents alone (n at most {int(limited['samples'].max())}): no benchmark score."
        )
    if (part["seeds"] > 1).any():
        notes.append("Methods with several seeds: mean over the seeds that are done.")
    partial = part[(part["seeds_done"] > 0) & (part["state"] != "done")]
    if len(partial):
        notes.append(f"* not all seeds are done ({len(partial)} configurations).")
    surplus = (part["effective_budget"] / part["budget"].astype(float) - 1).groupby(part["method"]).max()
    for method, share in surplus[surplus > 0.01].items():
        notes.append(f"{title_of(str(method))} kept up to {share:.1%} more than its nominal budget.")
    return [*notes, *_mixed(part)]


def _mixed(part: pd.DataFrame) -> list[str]:
    """A warning where rows were not made under equal conditions."""
    done = part[part["seeds_done"] > 0]
    names = {"code": "code", "dtype": "dtype", "device_type": "device"}
    found = []
    for name in SURROUNDINGS:
        values = sorted({value for text in done[name] for value in text.split()})
        if len(values) > 1:
            found.append(f"† rows differ in {names[name]}: {', '.join(values)}.")
    return found


def _full(study: Study, model: str, task: str) -> list[str]:
    frame = study.configurations
    rows = frame[(frame["model"] == model) & (frame["task"] == task) & of_reference(frame)]
    return [
        f"{title_of(REFERENCE)}, {row.effective_budget:.0f} entries: {_interval(row)}."
        for row in rows.itertuples()
        if row.seeds_done
    ]


def _interval(row: Any) -> str:
    if row is None:
        return MISSING
    interval = "" if pd.isna(row.ci_low) else f" [{row.ci_low:.3f}, {row.ci_high:.3f}]"
    return f"{row.score:.3f}{interval}"


def _difference(row: Mapping[str, Any]) -> str:
    interval = "" if pd.isna(row["low"]) else f" [{row['low']:+.3f}, {row['high']:+.3f}]"
    return f"{row['mean']:+.3f}{interval}"


def _score(row: pd.Series | None) -> str:
    if row is None:
        return MISSING
    if not row["seeds_done"]:
        return str(row["state"])
    return _interval(row) + ("" if row["state"] == "done" else " *")


def _score_and_budget(row: pd.Series | None) -> list[str]:
    known = row is not None and not pd.isna(row["effective_budget"])
    return [_score(row), f"{row['effective_budget']:.1f}" if known else MISSING]


def _budget(value: Any) -> str:
    return "all" if pd.isna(value) else str(int(value))


def _value(value: Any) -> str:
    if pd.isna(value):
        return MISSING
    return f"{value:g}" if isinstance(value, float) else str(value)


def _records(part: pd.DataFrame) -> list[dict[str, Any]]:
    rows = part.drop(columns=["scores", "published", "loss"], errors="ignore").to_dict("records")
    papers = [[{"score": one.score, "source": one.source} for one in found] for found in part["published"]]
    return [{**plain(row), "published": found} for row, found in zip(rows, papers, strict=True)]
