"""What a failure does: stop the run, leave a sample out, or end all processes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lmms_eval.api.instance import Instance
from loguru import logger

from sparsemm_eval.errors import SparseMMError
from sparsemm_eval.model_wrappers.answering.samples import SampleError

EXIT_CODE = 1
_SKIPPED = "skipped:"


class TooManySkippedError(SparseMMError):
    """More samples than allowed were skipped."""


@dataclass(frozen=True)
class FailurePolicy:
    """Decides what a failing sample does to the run."""

    on_error: str  # ``raise`` or ``skip``
    max_skipped: float  # largest share of skipped samples, in [0, 1]
    skipped: dict[str, str] = field(default_factory=dict)  # sample name -> reason, in order

    def fail(self, error: SampleError, instance: Instance) -> None:
        """Raise, or leave the sample out.

        A skipped sample is no wrong answer: its request loses its document, so that lmms-eval, which scores
        documents by their requests, has nothing to score.
        """
        if self.on_error == "raise":
            raise error
        logger.error(f"skipped {error}")
        self.skipped[error.name] = str(error)
        if not str(instance.doc_id).startswith(_SKIPPED):
            instance.doc_id = f"{_SKIPPED}{instance.doc_id}"

    def check(self, skipped: int, total: int) -> None:
        """Raise TooManySkippedError when too large a share of ``total`` samples was skipped."""
        if skipped > self.max_skipped * total:
            names = ", ".join(list(self.skipped)[:5])
            raise TooManySkippedError(
                f"{skipped} of {total} samples were skipped, more than max_skipped={self.max_skipped} allows"
                + (f"; the first: {names}" if names else "")
            )


@contextmanager
def ending_all_ranks() -> Iterator[None]:
    """Turn an exception in one of several processes into the end of all.

    lmms-eval catches exceptions and leaves the other ranks waiting for this one; the launcher ends them as
    soon as one process exits with an error.
    """
    # What every launcher sets, also before there is a process group.
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    try:
        yield
    except Exception as error:
        if world_size == 1:
            raise
        traceback.print_exc()
        logger.error(f"rank {rank} of {world_size} failed and ends the run: {error}")
        sys.stdout.flush()
        sys.stderr.flush()
        # A normal exit would wait for the process group.
        os._exit(EXIT_CODE)
