"""The masking experiment: accuracy without the best visual heads, against accuracy without as many others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas

from sparsemm_eval.checks import Natural, Share, one_of, record
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.files import RecordStore, digest_of
from sparsemm_eval.heads.scores.table import HeadScores, count_of
from sparsemm_eval.methods.head_masking import MODES

EARLIER = "mask.json"  # where earlier versions kept points
KINDS = NOTHING, VISUAL, RANDOM = "nothing", "visual", "random"


@dataclass(frozen=True)
class Point:
    """One evaluation."""

    heads: str  # masked ones: ``nothing``, ``visual`` (the best) or ``random`` (drawn from all others)
    share: float  # of all query heads
    seed: int | None = None  # of the draw; None where nothing is drawn


@dataclass(frozen=True)
class Measured:
    """What an evaluation found, by task."""

    scores: Mapping[str, Mapping[str, float]]  # metric to value
    errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # metric to standard error
    samples: Mapping[str, int] = field(default_factory=dict)  # number of documents


Measure = Callable[[Point], Measured]


@record
class MaskPlan:
    """Which heads are masked, and how.

    Attributes
    ----------
    shares : tuple of float
        Of all query heads, each in (0, 0.5]: random heads are drawn from those that are not among the best.
    seeds : tuple of int
        Of the random draws, the same for every share.
    mode : str
        See ``masked_heads``.
    """

    shares: tuple[Share, ...] = (0.02, 0.05, 0.1, 0.2)
    seeds: tuple[Natural, ...] = (0, 1, 2)
    mode: one_of(*MODES) = "query"

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share <= 0.5 for share in self.shares):
            raise ConfigError("shares", self.shares, "at least one number above 0 and up to 0.5")
        for name, values in (("shares", self.shares), ("seeds", self.seeds)):
            if len(set(values)) != len(values):
                raise ConfigError(name, values, "every value once")

    def points(self) -> Iterator[Point]:
        """Every evaluation: without masking, then per share the best heads and each draw of others."""
        yield Point(NOTHING, 0.0)
        for share in sorted(self.shares):
            yield Point(VISUAL, share)
            yield from (Point(RANDOM, share, seed) for seed in self.seeds)


def check_shares(plan: MaskPlan, scores: HeadScores) -> None:
    """Refuse shares that the model has too few heads for, before anything is evaluated.

    Raises
    ------
    ConfigError
        If rounding leaves fewer other heads than are to be drawn, or two shares are the same number of heads.
    """
    total = scores.table.numel()
    counts = [count_of(share, total) for share in plan.shares]
    if 2 * max(counts) > total or len(set(counts)) != len(counts):
        remedy = f"different numbers of heads, at most half of all {total} (these are {counts} heads)"
        raise ConfigError("shares", plan.shares, remedy)


def run(
    plan: MaskPlan,
    identity: Mapping[str, Any],
    measure: Measure,
    folder: Path,
    say: Callable[[str], None] = print,
    metric: str | None = None,
) -> dict[Point, Measured]:
    """Evaluate every point and store each as soon as it is known.

    ``identity`` is everything besides plan and point that decides a result, in JSON types: model, weights,
    head scores, tasks, versions. A point found in ``folder`` is taken from there when all of it is the same.

    Raises
    ------
    ConfigError
        If a task does not have the ``metric`` of the later table, once the first point is known.
    JournalError
        If another process uses the folder, or what is kept there is damaged.
    """
    found: dict[Point, Measured] = {}
    if (folder / EARLIER).exists():
        say(f"{folder / EARLIER} is of an earlier version of this package and is left alone")
    with RecordStore(folder, "points", unit="points", elsewhere="choose another folder") as store:
        for point in plan.points():
            key = _key(plan, identity, point)
            say(f"{_name(point)}: {'known' if key in store else 'evaluating'}")
            kept = store.recall(key, partial(_measured, measure, point, identity))
            found[point] = Measured(kept["scores"], kept["errors"], kept["samples"])
            for task, scores in found[point].scores.items():
                chosen_metric(metric, task, scores)
    return found


def table(found: Mapping[Point, Measured], total: int, metric: str | None = None) -> pandas.DataFrame:
    """What was measured on a model of ``total`` query heads; without a metric's name, the first of each task.

    There is one row per task, kind of masked heads and share. ``score`` is the mean over the draws, whose
    number is ``draws``. ``spread`` is their standard deviation, and ``lowest`` and ``highest`` are the worst
    and the best draw. ``count`` is the number of masked heads. A value that is not known is None.

    Raises
    ------
    ConfigError
        If a task does not have the metric.
    """
    groups: dict[tuple[str, float], list[Measured]] = {}
    for point, measured in found.items():
        groups.setdefault((point.heads, point.share), []).append(measured)
    [full] = groups[NOTHING, 0.0]
    rows = []
    for task, scores in full.scores.items():
        chosen = chosen_metric(metric, task, scores)
        for heads, share in sorted(groups, key=lambda group: (KINDS.index(group[0]), group[1])):
            values = [measured.scores[task][chosen] for measured in groups[heads, share]]
            errors = groups[heads, share][0].errors.get(task, {})
            row = {
                "task": task,
                "metric": chosen,
                "samples": full.samples.get(task),
                "heads": heads,
                "share": share,
                "count": count_of(share, total),
                "draws": len(values),
                "score": fmean(values),
                "standard_error": None if heads == RANDOM else errors.get(chosen),
                "spread": stdev(values) if len(values) > 1 else None,
                "lowest": min(values),
                "highest": max(values),
            }
            rows.append(row)
    # As objects, whole numbers stay whole beside values that are not known.
    return pandas.DataFrame(rows, dtype=object)


def chosen_metric(metric: str | None, task: str, known: Iterable[str]) -> str:
    """The metric that is shown of a task: by default the first that it has; a ConfigError if it lacks it."""
    names = list(known)
    if metric and metric not in names:
        raise ConfigError("metric", metric, f"one that {task} has: {', '.join(names)}")
    return metric or names[0]


def _measured(measure: Measure, point: Point, identity: Mapping[str, Any]) -> dict[str, Any]:
    return {"point": asdict(point), **asdict(measure(point)), "identity": dict(identity)}


def _key(plan: MaskPlan, identity: Mapping[str, Any], point: Point) -> str:
    # Without masked heads, the mode does not matter.
    mode = None if point.heads == NOTHING else plan.mode
    return digest_of({"point": asdict(point), "mode": mode, "identity": dict(identity)})


def _name(point: Point) -> str:
    if point.heads == NOTHING:
        return "no head masked"
    seed = "" if point.seed is None else f", draw {point.seed}"
    return f"{point.share:.1%} {point.heads} heads masked{seed}"
