"""What a run measured: one row per sample, and the figures over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from sparsemm_eval.heads.scores.recall import FIGURES
from sparsemm_eval.model_wrappers.answering.answer import TABLES, Answer

#: What is averaged over samples, and the name of the mean.
MEANS = {
    "effective_budget": "effective_budget",
    "prompt_tokens": "prompt_tokens_per_sample",
    "image_tokens": "image_tokens_per_sample",
    "image_tokens_kept": "image_tokens_kept_per_sample",
    "prefill_flops": "prefill_flops_per_sample",
    "kv_bytes": "kv_bytes_per_sample",
    "kv_bytes_full": "kv_bytes_full_per_sample",
    "kv_bytes_end": "kv_bytes_end_per_sample",
}
#: The same of samples that have evidence.
EVIDENCE_MEANS = {"evidence_tokens": "evidence_tokens_per_sample", **{name: name for name in FIGURES}}
#: The same of what depends on the machine and the batch: over samples that this run answered itself.
TIMED_MEANS = {
    "kv_bytes_reserve": "kv_bytes_reserve_per_sample",
    "prefill_seconds": "prefill_seconds_per_sample",
    "decode_seconds_per_step": "decode_seconds_per_step",
    "decode_seconds_per_token": "decode_seconds_per_token",
}
COUNTS = ("restored", "empty", "past_context")
NAMES_KEPT = 5


@dataclass
class Totals:
    """The samples answered so far.

    Attributes
    ----------
    context : int or None
        Tokens of the model's context; None: not known.
    rows : list of dict
        Per sample: its name, what was measured but the tables, whether it was taken from the journal or is
        empty, what was kept of its evidence, and how it agrees with a reference, if there is one.
    kept_sum : numpy.ndarray
        int64 [layers, KV heads]: entries kept, summed over samples; 0 where there are none.
    skipped : dict
        Name -> reason.
    elapsed_seconds, warm_up_seconds : float
        What answering took in this process, and compiling and capturing besides; of several processes, in the
        one that took longest. Answers taken from the journal took nothing.
    """

    context: int | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    kept_sum: Any = 0
    skipped: dict[str, str] = field(default_factory=dict)
    elapsed_seconds: float = 0.0
    warm_up_seconds: float = 0.0

    def add(
        self,
        answer: Answer,
        *,
        restored: bool,
        agreement: Mapping[str, Any] | None = None,
        recall: Mapping[str, float | None] | None = None,
    ) -> None:
        """Count one answer, how it agrees with the reference's, and what was kept of its evidence."""
        measured = answer.measured
        row = {name: value for name, value in vars(measured).items() if name not in TABLES}
        row |= {"name": f"{answer.task}/{answer.doc_id}", "generated_tokens": len(answer.tokens)}
        row |= {"restored": restored, "empty": not answer.text.strip()}
        self.rows.append(row | dict(recall or {}) | dict(agreement or {}))
        self.kept_sum = self.kept_sum + measured.kept.astype(np.int64)
        if not restored:
            self.elapsed_seconds += measured.seconds
            self.warm_up_seconds += measured.warm_up_seconds

    @classmethod
    def merged(cls, parts: Iterable[Totals]) -> Totals:
        """The totals of several processes as one."""
        whole = cls()
        for part in parts:
            whole.context = whole.context or part.context
            whole.rows = whole.rows + part.rows
            whole.kept_sum = whole.kept_sum + part.kept_sum
            whole.skipped = whole.skipped | part.skipped
            whole.elapsed_seconds = max(whole.elapsed_seconds, part.elapsed_seconds)
            whole.warm_up_seconds = max(whole.warm_up_seconds, part.warm_up_seconds)
        return whole

    def table(self) -> pd.DataFrame:
        """The rows, with a column for every figure; NaN where a sample lacks one."""
        timed = [*TIMED_MEANS, "kv_bytes_peak_per_call"]
        numbers = ("generated_tokens", "batch", *MEANS, *EVIDENCE_MEANS, *timed)
        own = (name for row in self.rows[:1] for name in row)
        table = pd.DataFrame(self.rows, columns=list(dict.fromkeys(["name", *COUNTS, *numbers, *own])))
        table = table.astype(dict.fromkeys(COUNTS, bool) | dict.fromkeys(numbers, float))
        table["decode_seconds_per_token"] = table["decode_seconds_per_step"] / table["batch"]
        ends = table["prompt_tokens"] + table["generated_tokens"]
        table["past_context"] = ends > (float("inf") if self.context is None else self.context)
        table.loc[table["restored"], timed] = float("nan")  # of the run that answered it
        return table

    def empty_names(self) -> list[str]:
        """The first few samples with an empty answer."""
        return [row["name"] for row in self.rows if row["empty"]][:NAMES_KEPT]

    def summary(self) -> dict[str, Any]:
        """Figures by name, JSON types; what was never measured is missing.

        ``effective_budget`` with ``_min`` and ``_max``: entries per KV head. ``kv_bytes*_per_sample``: bytes
        of the prompt's entries after compression, of FullKV's (``full``), of all entries in the end
        (``end``), and of what was allocated and free then (``reserve``). ``kv_bytes_peak_per_call``: of the
        largest call, all its rows together. ``decode_seconds_per_step``: of a whole batch; ``_per_token``:
        divided by its rows. ``samples_timed``: those that times, reserve and peak are of; answers from the
        journal are not. ``evidence_*``: means over the ``evidence_samples`` that have any, in [0, 1] but for
        ``evidence_tokens_per_sample``. ``agreement_*``: counts, and shares of the compared samples.
        """
        table = self.table()
        restored, empty, past_context = (int(table[name].sum()) for name in COUNTS)
        figures = {
            "samples": len(table),
            "samples_skipped": len(self.skipped),
            "samples_restored": restored,
            "samples_timed": len(table) - restored,
            "empty_answers": empty,
            "answers_past_context": past_context,
        }
        names = MEANS | EVIDENCE_MEANS | TIMED_MEANS
        figures |= table[list(names)].mean().rename(names).dropna().to_dict()
        if len(table):
            figures |= {
                "effective_budget_min": float(table["effective_budget"].min()),
                "effective_budget_max": float(table["effective_budget"].max()),
                "kv_share": float(table["kv_bytes"].sum() / table["kv_bytes_full"].sum()),
            }
        if restored < len(table):
            figures |= {
                "kv_bytes_peak_per_call": int(table["kv_bytes_peak_per_call"].max()),
                "elapsed_seconds": self.elapsed_seconds,
                "warm_up_seconds": self.warm_up_seconds,
            }
        if table["evidence_tokens"].any():
            figures["evidence_samples"] = int(table["evidence_tokens"].count())
        if "agreement_identical" in table:
            shares = table[["agreement_identical", "agreement_edit_similarity"]].astype(float)
            compared = int(shares["agreement_identical"].count())
            figures |= {"agreement_compared": compared, "agreement_missing": len(table) - compared}
            figures |= shares.mean().dropna().to_dict()
        return figures

    def kept_mean(self) -> list[list[float]] | None:
        """Mean entries kept per [layer, KV head]."""
        return (self.kept_sum / len(self.rows)).tolist() if self.rows else None
