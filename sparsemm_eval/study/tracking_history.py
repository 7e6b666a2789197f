"""What is logged over time: answers as they come in, and the score over documents afterwards."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

#: (task, doc_id, answer) -> score, or None where only lmms-eval can tell, at the end.
ScoreOf = Callable[[str, int, str], "float | None"]

MAX_POINTS = 500


class AnswerTail:
    """Reads the answers that a running cell adds to its files; every answer once.

    The journal is read; where the cell has none (``journal=off``), the per-sample figures, which reach
    the disk some kilobytes at a time.

    Parameters
    ----------
    cell_folder : pathlib.Path
        With ``journal/`` and ``stats/``.
    """

    def __init__(self, cell_folder: Path):
        self._journal, self._stats = cell_folder / "journal", cell_folder / "stats"
        self._offsets: dict[Path, int] = {}
        self._seen: set[str] = set()
        self.run: str | None = None

    def read(self) -> list[dict[str, Any]]:
        """New answers: dicts with task, doc_id, text, effective_budget, kv_bytes.

        `run` names whose answers they are. When it changes (another version of the code began anew in the
        same folder) everything read before is void and the new run's answers come from the first on.
        """
        run, files = self._source()
        if run != self.run:
            self.run = run
            self._offsets.clear()
            self._seen.clear()
        return [answer for path in files for answer in self._new(path)]

    def _source(self) -> tuple[str | None, list[Path]]:
        runs = sorted(self._journal.glob("runs/*.json"), key=lambda path: path.stat().st_mtime_ns)
        if runs:
            return runs[-1].stem, sorted(self._journal.glob("*/rank-*.jsonl"))
        stems = {
            path.name.rpartition(".rank")[0] for path in self._stats.glob("*_sparsemm_samples.rank*.jsonl")
        }
        if not stems:
            return None, []
        return max(stems), sorted(self._stats.glob(f"{max(stems)}.rank*.jsonl"))

    def _new(self, path: Path) -> Iterator[dict[str, Any]]:
        with path.open("rb") as file:
            file.seek(self._offsets.get(path, 0))
            for line in file:
                # The line being written at this moment is read when it is whole.
                if not line.endswith(b"\n"):
                    break
                self._offsets[path] = self._offsets.get(path, 0) + len(line)
                record = json.loads(line)
                if record.get("run", self.run) != self.run:
                    continue
                key = record.get("key") or f"{record['task']}/{record['doc_id']}/{record['repeat']}"
                if key not in self._seen:
                    self._seen.add(key)
                    yield _normal(record)


def _normal(record: dict[str, Any]) -> dict[str, Any]:
    measured = record.get("measured", record)
    return {
        "task": record["task"],
        "doc_id": record["doc_id"],
        "text": record["text"] if "text" in record else record["answer"],
        "effective_budget": measured["effective_budget"],
        "kv_bytes": measured["kv_bytes"],
    }


@dataclass
class Mean:
    """A running mean."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        """Count one value."""
        self.total += value
        self.count += 1

    @property
    def value(self) -> float:
        """The mean so far; there is at least one value."""
        return self.total / self.count


@dataclass
class _Figures:
    samples: int = 0
    effective_budget: Mean = field(default_factory=Mean)
    kv_bytes: Mean = field(default_factory=Mean)
    scores: dict[str, Mean] = field(default_factory=dict)


class History:
    """Running figures of a cell.

    Parameters
    ----------
    cell_folder : pathlib.Path
    score_of : callable
        See `ScoreOf`.
    logged : int
        Samples at the last point of an earlier session; the same point is not given again.
    clock : callable
        Seconds.
    """

    def __init__(
        self,
        cell_folder: Path,
        score_of: ScoreOf,
        logged: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._tail = AnswerTail(cell_folder)
        self._score_of, self._clock = score_of, clock
        self._figures, self._run = _Figures(), None
        self._logged = logged
        self._take()
        # What earlier sessions answered is no speed of this one.
        self._rate_samples, self._rate_time = self._figures.samples, clock()

    def point(self) -> dict[str, float] | None:
        """Figures over all answers so far, or None if there is no new one since the last point.

        ``progress/samples``; ``progress/samples_per_second`` since the last point;
        ``progress/effective_budget`` and ``progress/kv_bytes``, means over samples; ``progress/score/<task>``
        where it is known already.
        """
        self._take()
        figures = self._figures
        if not figures.samples or figures.samples == self._logged:
            return None
        now = self._clock()
        new, seconds = figures.samples - self._rate_samples, now - self._rate_time
        point = {
            "progress/samples": figures.samples,
            "progress/effective_budget": figures.effective_budget.value,
            "progress/kv_bytes": figures.kv_bytes.value,
        }
        if new > 0 and seconds > 0:
            point["progress/samples_per_second"] = new / seconds
        point |= {f"progress/score/{task}": mean.value for task, mean in figures.scores.items()}
        self._logged = self._rate_samples = figures.samples
        self._rate_time = now
        return point

    def _take(self) -> None:
        answers = self._tail.read()
        if self._tail.run != self._run:
            self._figures, self._run = _Figures(), self._tail.run
            self._rate_samples = 0
        for answer in answers:
            figures = self._figures
            figures.samples += 1
            figures.effective_budget.add(answer["effective_budget"])
            figures.kv_bytes.add(answer["kv_bytes"])
            score = self._score_of(answer["task"], answer["doc_id"], answer["text"])
            if score is not None:
                figures.scores.setdefault(answer["task"], Mean()).add(score)


def running_scores(samples: pd.DataFrame, limit: int = MAX_POINTS) -> list[dict[str, float]]:
    """Mean score over the first documents of each task, in document order.

    Parameters
    ----------
    samples : pandas.DataFrame
        Columns task, doc_id, score; samples without a score are left out.
    limit : int
        Most points; they are spread evenly and include the last.

    Returns
    -------
    list of dict
        ``document`` (number of documents so far, ascending) and ``running_score/<task>``.
    """
    rows: dict[int, dict[str, float]] = {}
    if samples.empty:
        return []
    for task, group in samples.dropna(subset=["score"]).groupby("task", sort=True):
        means = group.sort_values("doc_id", kind="stable")["score"].astype(float).expanding().mean().tolist()
        for index in _spread(len(means), limit):
            rows.setdefault(index + 1, {})[f"running_score/{task}"] = means[index]
    return [{"document": document, **rows[document]} for document in sorted(rows)]


def _spread(count: int, limit: int) -> list[int]:
    stride = max(1, math.ceil(count / limit))
    return list(range(count - 1, -1, -stride))[::-1]
