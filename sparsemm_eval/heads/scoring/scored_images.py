"""The scores of every finished image on disk, so that a killed run goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sparsemm_eval.errors import HeadScoreError
from sparsemm_eval.files import RecordStore, digest_of
from sparsemm_eval.heads.scoring.batch_scores import ImageScore

KIND = "part"
RUN = "run "  # keys of what decided the scores; those of images are numbers
ELSEWHERE = "choose another journal folder"


class ScoredImages:
    """A journal of one scoring run, shared by all its processes.

    ``run`` is what decides the scores, in JSON types; ``rank`` is the number of this process.

    Raises
    ------
    JournalError
        If the folder cannot be used or holds something else.
    HeadScoreError
        If it holds the journal of another run.
    """

    def __init__(self, folder: str | Path, run: Mapping[str, Any], rank: int = 0):
        self.run, self._key = dict(run), RUN + digest_of(dict(run))
        self._store = RecordStore(Path(folder), KIND, rank, unit="images", elsewhere=ELSEWHERE)
        try:
            for other in self._store:
                if other.startswith(RUN) and other != self._key:
                    raise HeadScoreError(self._difference(self._store[other]))
        except BaseException:
            self._store.close()
            raise

    def __enter__(self) -> ScoredImages:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def append(self, scores: Mapping[int, ImageScore]) -> None:
        """Store finished images by number, the first of them with what decided the scores."""
        self._store.recall(self._key, lambda: self.run)
        self._store.append({str(index): _record(score) for index, score in scores.items()})

    def read(self) -> dict[int, ImageScore]:
        """Finished images of all processes, by number, in ascending order."""
        numbers = sorted(int(key) for key in self._store if not key.startswith(RUN))
        return {number: _image_score(self._store[str(number)]) for number in numbers}

    def _difference(self, theirs: Mapping[str, Any]) -> str:
        settings = [
            f"{name}={theirs.get(name)!r} there, {self.run.get(name)!r} here"
            for name in sorted({*theirs, *self.run})
            if theirs.get(name) != self.run.get(name)
        ]
        folder = str(self._store.path.parent)
        return f"journal {folder!r} belongs to another run: {', '.join(settings)}; {ELSEWHERE} or remove it"


def _record(score: ImageScore) -> dict[str, Any]:
    tables = {"scores": score.scores.tolist(), "hits": score.hits.tolist()}
    return {**vars(score), **tables, "bad_boxes": dict(score.bad_boxes)}


def _image_score(record: Mapping[str, Any]) -> ImageScore:
    scores = torch.tensor(record["scores"], dtype=torch.float64)
    return ImageScore(**{**record, "scores": scores, "hits": torch.tensor(record["hits"])})
