"""Which samples share a batch: one task, equal settings, similar length; and nothing a kill could change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sparsemm_eval.model_wrappers.answering.samples import Request, Sample

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
