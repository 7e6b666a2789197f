"""Which metric of a task is its score, and what each sample contributes to it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LETTER = re.compile(r"(?<![A-Za-z])[A-E](?![A-Za-z])")
_TOLERANCE = 1e-9


def _number(value: Any) -> float | None:
    plain = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if plain else None


@dataclass(frozen=True)
class Metric:
    """A task's primary metric."""

    name: str  # as lmms-eval reports it
    full: float = 1.0  # the best possible value: 1 for shares, 100 for percent
    #: A sample's logged value -> its contribution, or None where it has none.
    sample: Callable[[Any], float | None] = _number
    documents: int | None = None  # that the task divides by, whatever number was run

    def scale(self, count: int) -> float:
        """Factor from the mean contribution of so many samples to the reported score."""
        return self.full if self.documents is None else self.full * count / self.documents

    def caution(self, count: int) -> str | None:
        """What to know about a score of ``count`` samples, if anything."""
        if self.documents is None or count == self.documents:
            return None
        return f"divided by {self.documents} documents although {count} were run"


def _logged_score(value: Any) -> float | None:
    """OCRBench logs a record with the sample's own 0 or 1."""
    return _number(value.get("score")) if isinstance(value, Mapping) else None


def _option_hit(value: Any) -> float | None:
    """MMBench logs question and answer only: hit if the first lone letter A to E is the right one."""
    if not isinstance(value, Mapping) or "prediction" not in value or "answer" not in value:
        return None
    found = _LETTER.search(str(value["prediction"]))
    return float(found is not None and found[0] == str(value["answer"]).strip())


#: Task -> what is shown as its score. CIDEr is of all captions together: no sample has a share in it.
PRIMARY: dict[str, Metric] = {
    "docvqa_val": Metric("anls"),
    "ocrbench": Metric("ocrbench_accuracy", sample=_logged_score, documents=1000),
    "textvqa_val": Metric("exact_match"),
    "chartqa": Metric("relaxed_overall"),
    "textcaps_val": Metric("textcaps_CIDEr", sample=lambda value: None),
    "mmbench_en_dev_static": Metric("gpt_eval_score", full=100.0, sample=_option_hit),
    "vqav2_val": Metric("exact_match"),
    "pages_qa": Metric("exact_match"),
    "pages_ocr": Metric("character_accuracy"),
    "pages_qa_dev": Metric("exact_match"),
    "pages_ocr_dev": Metric("character_accuracy"),
    **dict.fromkeys([f"pages_many_{count}" for count in (2, 4, 8, 16)], Metric("exact_match")),
}


def primary(task: str, scores: Mapping[str, float]) -> Metric | None:
    """The metric that stands for a task; of an unknown task the first that lmms-eval reports.

    ``scores`` are finite, by metric name, in lmms-eval's order. None where the task has no score.
    """
    known = PRIMARY.get(task)
    if known is not None:
        return known if known.name in scores else None
    return Metric(next(iter(scores))) if scores else None


def per_sample(metric: Metric, logged: Sequence[Mapping[str, Any]], reported: float) -> list[float] | str:
    """Every sample's contribution, if they really add up to the reported score.

    One value per record of ``logged``, which are lmms-eval's of a task; their mean times ``metric.scale`` is
    ``reported``. Else the reason why there are none.
    """
    if not logged:
        return "lmms-eval logged no samples"
    values = [metric.sample(record.get(metric.name)) for record in logged]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return f"{metric.name} is no mean over samples"
    mean = math.fsum(known) / len(known) * metric.scale(len(known))
    if not math.isclose(mean, reported, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
        return f"the samples' {metric.name} gives {mean:.6g}, not the reported {reported:.6g}"
    return known
