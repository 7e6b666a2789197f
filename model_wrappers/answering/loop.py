"""One run's loop: requests in, results out, each answer journaled, measured, or accounted for as skipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance
from tqdm import tqdm

from sparsemm_eval.model_wrappers.answering.answer import Answer
from sparsemm_eval.model_wrappers.answering.answerer import Answerer, answer_in_parts, as_sample_error
from sparsemm_eval.model_wrappers.answering.failures import FailurePolicy
from sparsemm_eval.model_wrappers.answering.samples import Request, Sample, SampleError, SampleReader
from sparsemm_eval.model_wrappers.records.journal import Journal
from sparsemm_eval.model_wrappers.records.reporting import Report

#: Batches per window. Images of one window are in memory at once; a larger one sorts better.
WINDOW = 16


def windows(requests: Sequence[Request], batch_size: int) -> Iterator[list[Request]]:
    """Cut requests into windows of one task and equal generation settings, in their given order.

    Windows, and so batches, depend on the requests alone: a run that is taken up again forms the same batches
    and gives bit for bit the same answers.
    """
    groups: dict[tuple[str, str], list[Request]] = {}
    for request in requests:
        groups.setdefault((request.task, request.settings.canonical()), []).append(request)
    size = WINDOW * batch_size
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def batches(samples: Sequence[Sample], batch_size: int) -> Iterator[list[Sample]]:
    """Cut a window's samples into batches of similar length, longest first to meet a lack of memory early."""
    ordered = sorted(samples, key=lambda sample: (-sample.length, sample.request.index))
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


@dataclass(frozen=True)
class AnswerLoop:
    """Answers requests; without a journal nothing is remembered."""

    reader: SampleReader
    journal: Journal | None
    policy: FailurePolicy
    report: Report
    batch_size: int
    rank: int
    world_size: int

    def answer(
        self,
        requests: Sequence[Request],
        instances: Sequence[Instance],
        datasets: Mapping[str, Any],
        answerer: Answerer,
    ) -> list[GenerationResult]:
        """Answer requests in batches.

        Parameters
        ----------
        instances : sequence of Instance
            lmms-eval's own requests, which ``Request.index`` points into.
        datasets : mapping
            task -> split -> documents.

        Returns
        -------
        list of GenerationResult
            One per instance; those of skipped samples and of padding are never scored.
        """
        results = [GenerationResult(text="") for _ in instances]
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Answering") as progress:
            for window in windows(requests, self.batch_size):
                samples = list(self._read(window, instances, datasets))
                progress.update(len(window) - len(samples))
                for batch in batches(samples, self.batch_size):
                    for sample, answer in self._answer(batch, answerer, instances):
                        results[sample.request.index] = answer.to_result()
                    progress.update(len(batch))
                # This process knows its own part only; all have about equally many.
                self.policy.check(len(self.policy.skipped), len(requests) * self.world_size)
        return results

    def _read(
        self, window: Sequence[Request], instances: Sequence[Instance], datasets: Mapping[str, Any]
    ) -> Iterator[Sample]:
        for request in window:
            try:
                yield self.reader.read(request, datasets)
            except SampleError as error:
                self.policy.fail(error, instances[request.index])

    def _answer(
        self, batch: Sequence[Sample], answerer: Answerer, instances: Sequence[Instance]
    ) -> Iterator[tuple[Sample, Answer]]:
        known = self._known(batch)
        if all(sample.digest in known for sample in batch):
            for sample in batch:
                self.report.add(sample, known[sample.digest], restored=True)
                yield sample, known[sample.digest]
            return
        # A partly written batch is answered as a whole: other neighbours could change last bits.
        for part, outcome in answer_in_parts(batch, answerer.answer):
            if isinstance(outcome, Exception):
                error = as_sample_error(part[0], outcome)
                if error is not outcome:
                    error.__cause__ = outcome
                self.policy.fail(error, instances[part[0].request.index])
                continue
            answers = [known.get(sample.digest, answer) for sample, answer in zip(part, outcome, strict=True)]
            if self.journal is not None:
                self.journal.append(part, answers)
            for sample, answer in zip(part, answers, strict=True):
                self.report.add(sample, answer, restored=sample.digest in known)
                yield sample, answer

    def _known(self, batch: Sequence[Sample]) -> dict[str, Answer]:
        if self.journal is None:
            return {}
        self.journal.open_task(batch[0].request.task)
        found = {sample.digest: self.journal.find(sample) for sample in batch}
        return {digest: answer for digest, answer in found.items() if answer is not None}
