"""Running totals over a run's samples, which can be added up over processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsemm_eval.model_wrappers.answering.answer import Answer

#: What is averaged over samples.
_MEANS = (
    "prompt_tokens",
    "effective_budget",
    "kv_bytes",
    "kv_bytes_full",
    "kv_bytes_end",
    "prefill_seconds",
    "decode_seconds",
)
_NAMES_KEPT = 5


@dataclass
class Totals:
    """Sums, extremes and counts over samples.

    Attributes
    ----------
    context : int or None
        Tokens of the model's context; None: not known.
    samples, restored, empty, past_context : int
        Answers in all, those taken from the journal, empty ones, and those that end beyond the context.
    generated_tokens : int
    seconds : float
        Spent in ``generate``, each call counted once.
    skipped : dict
        Name -> reason.
    empty_names : list of str
        The first few samples with an empty answer.
    """

    context: int | None = None
    samples: int = 0
    restored: int = 0
    empty: int = 0
    past_context: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0
    skipped: dict[str, str] = field(default_factory=dict)
    empty_names: list[str] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    budget_min: float | None = None
    budget_max: float | None = None
    kv_bytes_peak: int = 0
    kept_sum: np.ndarray | None = None

    def add(self, answer: Answer, *, restored: bool) -> None:
        """Count one answer."""
        measured = answer.measured
        self.samples += 1
        self.restored += restored
        if not answer.text.strip():
            self.empty += 1
            if len(self.empty_names) < _NAMES_KEPT:
                self.empty_names.append(f"{answer.task}/{answer.doc_id}")
        length = measured.prompt_tokens + len(answer.tokens)
        self.past_context += self.context is not None and length > self.context
        self.generated_tokens += len(answer.tokens)
        self.seconds += measured.seconds
        for name in _MEANS:
            value = getattr(measured, name)
            if name == "kv_bytes_end":
                value /= measured.batch
            if value is not None:
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1
        self._extremes(measured.effective_budget, measured.effective_budget, measured.kv_bytes_peak)
        kept = measured.kept.astype(np.int64)
        self.kept_sum = kept if self.kept_sum is None else self.kept_sum + kept

    def _extremes(self, low: float, high: float, peak: int) -> None:
        self.budget_min = low if self.budget_min is None else min(self.budget_min, low)
        self.budget_max = high if self.budget_max is None else max(self.budget_max, high)
        self.kv_bytes_peak = max(self.kv_bytes_peak, peak)

    @classmethod
    def merged(cls, parts: Iterable[Totals]) -> Totals:
        """The totals of several processes as one."""
        whole = cls()
        for part in parts:
            whole.context = whole.context or part.context
            for name in ("samples", "restored", "empty", "past_context", "generated_tokens", "seconds"):
                setattr(whole, name, getattr(whole, name) + getattr(part, name))
            whole.skipped.update(part.skipped)
            whole.empty_names = (whole.empty_names + part.empty_names)[:_NAMES_KEPT]
            for name in part.sums:
                whole.sums[name] = whole.sums.get(name, 0.0) + part.sums[name]
                whole.counts[name] = whole.counts.get(name, 0) + part.counts[name]
            if part.budget_min is not None:
                whole._extremes(part.budget_min, part.budget_max, part.kv_bytes_peak)
            if part.kept_sum is not None:
                whole.kept_sum = part.kept_sum if whole.kept_sum is None else whole.kept_sum + part.kept_sum
        return whole

    def mean(self, name: str) -> float | None:
        """Mean of a measured figure over the samples that have it."""
        return self.sums[name] / self.counts[name] if self.counts.get(name) else None

    def summary(self) -> dict[str, Any]:
        """Figures by name, JSON types; what was never measured is missing.

        ``effective_budget`` with ``_min`` and ``_max``: entries per KV head. ``kv_bytes*``: bytes per sample;
        ``kv_bytes_peak``: of the largest call, all its rows together. ``prefill_seconds``: per call,
        ``decode_seconds``: per token.
        """
        figures = {
            "samples": self.samples,
            "samples_skipped": len(self.skipped),
            "samples_restored": self.restored,
            "empty_answers": self.empty,
            "answers_past_context": self.past_context,
        }
        figures |= {name: self.mean(name) for name in _MEANS if self.counts.get(name)}
        if self.samples:
            figures |= {
                "effective_budget_min": self.budget_min,
                "effective_budget_max": self.budget_max,
                "kv_bytes_peak": self.kv_bytes_peak,
                "kv_share": self.sums["kv_bytes"] / self.sums["kv_bytes_full"],
            }
        return figures

    def kept_mean(self) -> list[list[float]] | None:
        """Mean entries kept per [layer, KV head]."""
        return None if self.kept_sum is None else (self.kept_sum / self.samples).tolist()
