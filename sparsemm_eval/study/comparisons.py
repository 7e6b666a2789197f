"""Configurations of a study, and who wins at which effective budget, by how much, and how surely."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from math import log2
from typing import Any

import pandas as pd

from sparsemm_eval.study.columns import FIGURES, crossed_knobs, of_reference
from sparsemm_eval.study.method_knobs import title_of
from sparsemm_eval.study.metrics import PRIMARY, Metric
from sparsemm_eval.study.results import clusters_of
from sparsemm_eval.study.statistics import (
    Difference,
    Interval,
    mean_interval,
    mean_of_differences,
    mean_of_shares,
    paired_difference,
)

#: Columns whose mean over seeds is shown.
_OF_SEEDS = tuple(
    name
    for name, of_tasks in FIGURES.items()
    if of_tasks != "sum" and name not in ("effective_budget_min", "effective_budget_max")
)
#: What rows of one table should have in common.
SURROUNDINGS = ("code", "dtype", "device_type")
MEAN = "mean of tasks"


@dataclass(frozen=True)
class Scores:
    """Scores of one configuration on the documents that all its seeds have."""

    #: float, documents by ``doc_id`` down and seeds across, in the units of the samples.
    table: pd.DataFrame = field(repr=False)
    #: Names each document's images.
    clusters: pd.Series = field(repr=False)

    def interval(self, task: str | None = None) -> Interval:
        """The mean in the units of the task's score, or of the samples."""
        found = mean_interval(self.table.to_numpy(), self.clusters)
        return found if task is None else found.scaled(_scale(task, len(self.table)))

    def above(self, other: Scores, task: str | None = None) -> Difference | None:
        """How much this scores above another on the documents of both; None where there are none.

        In the units of the task's score, or of the samples.
        """
        common = self.table.index.intersection(other.table.index)
        if common.empty:
            return None
        tables = (one.table.loc[common].to_numpy() for one in (self, other))
        found = paired_difference(*tables, self.clusters.loc[common])
        return found if task is None else found.scaled(_scale(task, len(common)))

    def mixed(self, other: Scores, share: float) -> Scores | None:
        """Every document's score between these and another's; None where they have no documents in common."""
        common = self.table.index.intersection(other.table.index)
        if common.empty:
            return None
        first, second = (one.table.loc[common].to_numpy() for one in (self, other))
        if first.shape[1] != second.shape[1]:
            first, second = first.mean(1, keepdims=True), second.mean(1, keepdims=True)
        table = pd.DataFrame((1 - share) * first + share * second, common)
        return Scores(table, self.clusters.loc[common])

    def are_shares(self) -> bool:
        """Whether all of them are in [0, 1]."""
        values = self.table.to_numpy()
        return bool(values.min() >= 0 and values.max() <= 1)


def configurations(cells: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """One row per model, method, budget, crossed knobs and task.

    From the frames of `results.collect`. ``score`` and the measured figures are means over the seeds that are
    done; ``stderr``, ``ci_low`` and ``ci_high`` count documents' images and seeds as drawn at random.
    ``scores`` holds the `Scores`, or None where samples do not make up the score. ``seeds`` and
    ``seeds_done`` count; ``cells`` lists the cells' ids; ``state`` is ``done`` only where every seed is;
    ``label`` names method and knobs.
    """
    crossed = crossed_knobs(cells)
    keys = ["model", "pretrained", "method", "budget", *crossed, "task"]
    by_cell = dict(iter(samples.groupby(["cell", "task"])))
    groups = cells.groupby(keys, dropna=False, sort=False)
    rows = [_row(dict(zip(keys, key, strict=True)), group, by_cell) for key, group in groups]
    frame = pd.DataFrame(rows).astype({"budget": "Int64"})
    frame["label"] = [
        label(row["method"], {name: row[name] for name in crossed}) for _, row in frame.iterrows()
    ]
    # Models, methods and tasks stay in the study's order; a method's curve runs over its budgets.
    order = {name: list(frame[name].unique()) for name in ("model", "method", "task")}
    return frame.sort_values(
        ["model", "method", *crossed, "budget", "task"],
        key=lambda column: column.map(order[column.name].index) if column.name in order else column,
        kind="stable",
        ignore_index=True,
    )


def label(method: str, knobs: dict[str, Any]) -> str:
    """``SparseMM, kernel_size 7``."""
    given = (
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in knobs.items()
        if not pd.isna(value)
    )
    return ", ".join([title_of(method), *given])


def _row(
    keys: dict[str, Any], group: pd.DataFrame, samples: dict[tuple[str, str], pd.DataFrame]
) -> dict[str, Any]:
    done = group[group["state"] == "done"]
    undone = group.loc[group["state"] != "done", "state"]
    found = _scores(done, keys["task"], samples)
    interval = Interval(*[float("nan")] * 5) if found is None else found.interval(keys["task"])
    return {
        **keys,
        "metric": done["metric"].iloc[0] if len(done) else pd.NA,
        **interval.columns(),
        "score": done["score"].mean(),
        "scores": found,
        "samples": int(done["samples"].min()) if len(done) else 0,
        "skipped": int(done["skipped"].sum()),
        "limited": bool(done["limit"].notna().any()),
        "seeds": len(group),
        "seeds_done": len(done),
        **{name: done[name].mean() for name in _OF_SEEDS},
        **{name: " ".join(dict.fromkeys(done[name].dropna())) for name in SURROUNDINGS},
        "cells": list(group["cell"]),
        "state": "done" if undone.empty else undone.iloc[0],
        "note": "; ".join(dict.fromkeys(done["note"].dropna())),
    }


def _scores(done: pd.DataFrame, task: str, samples: dict[tuple[str, str], pd.DataFrame]) -> Scores | None:
    if done.empty:
        return None
    parts = [samples.get((cell, task)) for cell in done["cell"]]
    if any(part is None or part["score"].isna().any() for part in parts):
        return None
    table = pd.concat(
        [part.set_index("doc_id")["score"] for part in parts], axis=1, join="inner"
    ).sort_index()
    first = parts[0].set_index("doc_id", drop=False).loc[table.index]
    if table.empty:
        return None
    clusters = clusters_of(first[["doc_id", "images"]].to_dict("records"))
    return Scores(table.astype(float), pd.Series(clusters, table.index))


def targets(frame: pd.DataFrame) -> list[int]:
    """Powers of two that two curves or more reach with their effective budgets."""
    spans = []
    for _, curve in curves(frame):
        budgets = curve["effective_budget"]
        spans.append((budgets.min(), budgets.max()))
    if not spans:
        return []
    least, most = min(low for low, _ in spans), max(high for _, high in spans)
    powers = [2**power for power in range(int(log2(max(1, least))), int(log2(most)) + 2)]
    return [
        power
        for power in powers
        if sum(low <= power * 1.02 and power <= high * 1.02 for low, high in spans) >= 2
    ]


def curves(frame: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str], pd.DataFrame]]:
    """Model, task and label with the done configurations of one curve, by effective budget."""
    usable = frame[frame["scores"].notna() & frame["effective_budget"].notna() & frame["budget"].notna()]
    for key, curve in usable.groupby(["model", "task", "label"], sort=False):
        yield key, curve.sort_values("effective_budget")


def scores_at(curve: pd.DataFrame, target: float) -> Scores | None:
    """A curve's scores at an effective budget, between its two nearest ones; None beyond its ends.

    Every document's score is interpolated over the logarithm of the effective budget. An end that is within
    2 % of the target counts as the target.
    """
    rows = list(curve.itertuples())
    for row in rows:
        if abs(row.effective_budget - target) <= 0.02 * target:
            return row.scores
    for below, above in itertools.pairwise(rows):
        if below.effective_budget < target < above.effective_budget:
            low, high = log2(below.effective_budget), log2(above.effective_budget)
            return below.scores.mixed(above.scores, (log2(target) - low) / (high - low))
    return None


def at_equal_budgets(frame: pd.DataFrame) -> pd.DataFrame:
    """Scores at common effective budgets, the `targets`, one row per model, task, target and label.

    From the frame of `configurations`. With ``score``, ``ci_low`` and ``ci_high``, ``documents``, and
    ``best``: whether no other scores more. Rows of ``task`` `MEAN` are means over the tasks that all curves
    of a model share.
    """
    rows = []
    for target in targets(frame):
        for (model, task, name), curve in curves(frame):
            scores = scores_at(curve, target)
            if scores is None:
                continue
            keys = {"model": model, "task": task, "target": target, "label": name}
            keys["method"] = curve["method"].iloc[0]
            documents = len(scores.table)
            rows.append({**keys, **scores.interval(task).columns(), "documents": documents, "scores": scores})
    found = pd.DataFrame(rows, columns=[*_EQUAL])
    if found.empty:
        return found
    found = pd.concat([found, _means(found, frame)], ignore_index=True)
    best = found.groupby(["model", "task", "target"])["score"].transform("max")
    return found.assign(best=found["score"] >= best - 1e-12)


_EQUAL = (
    *("model", "task", "target", "label", "method", "score", "stderr", "ci_low", "ci_high", "documents"),
    *("scores", "best"),
)


def _means(found: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Means over tasks whose samples are scored in [0, 1], of labels that have all of them at a target."""
    rows = []
    for (model, target), part in found.groupby(["model", "target"], sort=False):
        tasks = frame.loc[frame["model"] == model, "task"].unique()
        if len(tasks) < 2:
            continue
        for name, of_label in part.groupby("label", sort=False):
            if len(of_label) != len(tasks) or not all(one.are_shares() for one in of_label["scores"]):
                continue
            parts = [one.interval() for one in of_label["scores"]]
            mean = mean_of_shares(parts, sum(one.clusters.nunique() for one in of_label["scores"]))
            first = of_label.iloc[0]
            keys = {"model": model, "task": MEAN, "target": target, "label": name, "method": first["method"]}
            rows.append({**keys, **mean.columns(), "documents": of_label["documents"].sum(), "scores": None})
    return pd.DataFrame(rows, columns=[*_EQUAL])


def paired(equal: pd.DataFrame, against: str) -> pd.DataFrame:
    """Paired differences of one label to every other, from the frame of `at_equal_budgets`.

    Per model, task, target and other label: `Difference` of ``against`` over the other, with its figures as
    columns. Rows of task `MEAN` take the mean of the tasks' differences.
    """
    rows: list[dict[str, Any]] = []
    for (model, target), part in equal.groupby(["model", "target"], sort=False):
        own = part[part["label"] == against].set_index("task")["scores"]
        keys = {"model": model, "target": target, "label": against}
        for name, others in part[part["label"] != against].groupby("label", sort=False):
            pairs = [
                (row.task, own[row.task], row.scores)
                for row in others.itertuples()
                if row.task in own.index and row.task != MEAN
            ]
            found = {task: mine.above(other, task) for task, mine, other in pairs}
            if MEAN in own.index and MEAN in set(others["task"]):
                apart = [mine.above(other) for _, mine, other in pairs]
                found[MEAN] = None if None in apart else mean_of_differences(apart)
            rows += [
                {**keys, "other": name, "task": task, **asdict(one)} for task, one in found.items() if one
            ]
    return pd.DataFrame(rows)


def against_full(frame: pd.DataFrame) -> list[Difference | None]:
    """Every configuration's paired difference to FullKV on its model and task; None where there is none."""
    reference = of_reference(frame)
    full = {
        (row.model, row.task): row.scores for row in frame[reference].itertuples() if row.scores is not None
    }
    return [
        row.scores.above(full[row.model, row.task], row.task)
        if not full_itself and row.scores is not None and (row.model, row.task) in full
        else None
        for row, full_itself in zip(frame.itertuples(), reference, strict=True)
    ]


def _scale(task: str, count: int) -> float:
    return PRIMARY.get(task, Metric("")).scale(count)
