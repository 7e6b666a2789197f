"""The report of a run: what was run and measured, in the run record, lmms-eval's results and the log."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from loguru import logger

from sparsemm_eval import compat
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.files import explained, write_json_atomically
from sparsemm_eval.heads.scores.recall import FIGURES, recall_figures
from sparsemm_eval.model_wrappers.answering.answer import Answer, Measurement
from sparsemm_eval.model_wrappers.answering.failures import FailurePolicy
from sparsemm_eval.model_wrappers.answering.samples import Sample
from sparsemm_eval.model_wrappers.arguments import Arguments
from sparsemm_eval.model_wrappers.records import identity as run_identity
from sparsemm_eval.model_wrappers.records.journal import agreement_with, read_reference
from sparsemm_eval.model_wrappers.records.run_record import RUN_SUFFIX, SAMPLES_SUFFIX
from sparsemm_eval.model_wrappers.records.totals import Totals


@dataclass
class Report:
    """Collects what a run measures and writes it down, to ``stats_dir`` as far as there is one.

    Every process writes its own samples; rank 0 writes the record. Several runs may share the folder.
    """

    identity: Mapping[str, Any]  # of the run, as are the names; see ``records.identity``
    names: Mapping[str, Any]
    run_digest: str
    arguments: Arguments
    context: int  # tokens of the model's context
    rank: int
    world_size: int
    shares: Callable[[], np.ndarray | None]  # of the KV heads in the model's head scores, float64 [L, K]
    window: int  # tokens at a prompt's end that every head keeps

    def __post_init__(self) -> None:
        self.shares = cache(self.shares)  # asked for where a document has evidence
        self.totals = Totals(self.context)
        reference = self.arguments.reference
        self._reference = None if reference is None else read_reference(reference)
        self._stem = f"{_moment(self.world_size)}_{self.identity['model_name']}_{self.run_digest[:12]}"
        self._folder = self.arguments.stats_dir and Path(self.arguments.stats_dir)
        self._samples: TextIO | None = None
        try:
            if self._folder:
                self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            remedy = f"a folder to write to ({error.strerror})"
            raise ConfigError("stats_dir", str(self._folder), remedy) from error

    def add(self, sample: Sample, answer: Answer, *, restored: bool) -> None:
        """Count one answer and write its measurements.

        Raises
        ------
        JournalError
            If they cannot be written, as on a full disk; so does ``finish``.
        """
        agreement = None
        if self._reference is not None:
            agreement = agreement_with(self._reference.get(sample.digest), answer.text, answer.tokens)
        recall = self._recall(answer.measured)
        self.totals.add(answer, restored=restored, agreement=agreement, recall=recall)
        if not self._folder:
            return
        record = {
            "task": answer.task,
            "doc_id": answer.doc_id,
            "repeat": answer.repeat,
            "sample": sample.digest,
            "images": sample.image_digest,
            "answer": answer.text,
            "tokens": len(answer.tokens),
            "restored": restored,
            **answer.measured.to_record(),
            **recall,
        }
        with self._writing():
            if self._samples is None:
                name = self._stem + SAMPLES_SUFFIX.format(rank=self.rank)
                self._samples = (self._folder / name).open("x", encoding="utf-8")
            self._samples.write(json.dumps(record, ensure_ascii=False) + "\n")

    def _writing(self) -> AbstractContextManager[None]:
        return explained(f"stats_dir={str(self._folder)!r} cannot be written")

    def _recall(self, measured: Measurement) -> dict[str, float | None]:
        if measured.evidence_kept is None:
            return dict.fromkeys(FIGURES)
        return recall_figures(
            measured.evidence_kept,
            measured.evidence_tokens,
            measured.kept,
            measured.prompt_tokens,
            self.window,
            self.shares(),
        )

    def finish(self, policy: FailurePolicy, results: Path | None = None) -> dict[str, Any]:
        """Add up all processes and write; every process calls it, once, at the same point.

        Parameters
        ----------
        results : pathlib.Path, optional
            The results file that lmms-eval will write, as rank 0 knows it; recorded as ``results_file``.

        Returns
        -------
        dict
            The run record, equal on all processes.

        Raises
        ------
        TooManySkippedError
            On all processes alike.
        """
        self.totals.skipped = dict(policy.skipped)
        totals = Totals.merged(_gathered(self.totals, self.world_size))
        record = {
            "run": self.run_digest,
            **self.identity,
            **self.names,
            "commit": run_identity.commit() if self.rank == 0 else None,
            "results_file": None if results is None else str(results),
            "batch_size": self.arguments.batch_size,
            "processes": self.world_size,
            "measured": totals.summary(),
            "kept_mean": totals.kept_mean(),
            "skipped": totals.skipped,
            "empty": totals.empty_names(),
        }
        with self._writing():
            if self._samples is not None:
                self._samples.close()
            if self._folder and self.rank == 0:
                write_json_atomically(self._folder / (self._stem + RUN_SUFFIX), record)
        if self.rank == 0:
            self._log(totals, record["measured"])
            describe_in_wandb(record)
        policy.check(len(totals.skipped), len(totals.rows) + len(totals.skipped))
        return record

    def _log(self, totals: Totals, measured: dict[str, Any]) -> None:
        for name, reason in totals.skipped.items():
            logger.error(f"skipped, and not part of any score: {name}: {reason}")
        answers = f"of {measured['samples']} answers"
        if measured["empty_answers"]:
            some = ", ".join(totals.empty_names())
            logger.warning(f"{measured['empty_answers']} {answers} are empty, among them {some}")
        if measured["answers_past_context"]:
            logger.warning(
                f"{measured['answers_past_context']} {answers} run past the model's context of "
                f"{totals.context} tokens, where it was never trained: lower max_new_tokens"
            )
        if measured.get("agreement_missing"):
            logger.warning(f"the reference has no answer to {measured['agreement_missing']} samples")
        if self._folder:
            logger.info(f"run record: {self._folder / (self._stem + RUN_SUFFIX)}")
        compression = self.identity["compression"]
        numbers = {name: value for name, value in compression.items() if isinstance(value, (int, float))}
        nominal = {f"nominal_{name}": value for name, value in numbers.items()}
        # lmms-eval writes these numbers into its results file, under "throughput" and with "avg_" in front.
        tokens = sum(row["generated_tokens"] for row in totals.rows if not row["restored"])
        compat.log_throughput(totals.elapsed_seconds, tokens, {**nominal, **measured})


def _moment(world_size: int) -> str:
    """Now, as rank 0 sees it."""
    moment = [datetime.now(UTC).strftime("%Y%m%dT%H%M%S_%f")]
    if world_size > 1:
        torch.distributed.broadcast_object_list(moment, src=0)
    return moment[0]


def _gathered(part: Any, world_size: int) -> list[Any]:
    if world_size == 1:
        return [part]
    parts = [None] * world_size
    torch.distributed.all_gather_object(parts, part)
    return parts


def describe_in_wandb(record: Mapping[str, Any]) -> None:
    """Give the W&B run that ``lmms-eval --wandb_args`` opened flat config and summary, from a run record.

    Config, to group runs by: family, method, budget, every knob, name of the head scores, decode mode.
    Summary: everything measured, under the names of the run record.
    """
    run = getattr(sys.modules.get("wandb"), "run", None)
    if run is None:
        return
    names = ("model_name", "family", "pretrained", "dtype", "decode", "kernel", "batch_size", "processes")
    config = {name: record[name] for name in names} | record["compression"]
    config["head_scores"] = record["head_scores_name"]
    run.config.update(config, allow_val_change=True)
    run.summary.update(record["measured"])
