"""The visual scores of a model's heads from many images, resumable and in shares, and the table they make."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from sparsemm_eval import __version__
from sparsemm_eval.checks import Count, Natural, record
from sparsemm_eval.errors import ConfigError, HeadScoreError
from sparsemm_eval.files import RecordStore, digest_of
from sparsemm_eval.heads.anchors.record import Anchor, AnchorSample
from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.heads.scoring.batch_scores import ImageScore, ScoringRule, score_batch

# Images of so many batches are sorted by length together; all of them are in memory at a time.
SORTED_BATCHES = 8
PIXELS_PER_TOKEN = 16**2
KIND = "part"
RUN = "run "  # keys of what decided the scores; those of images are numbers
ELSEWHERE = "choose another journal folder"


@record
class Workload:
    """Which images are scored; this process takes every ``world_size``-th of them from ``rank`` on."""

    images: Count = 200  # over all processes
    batch_size: Count = 8
    seed: Natural = 0  # of the anchor
    rank: Natural = 0
    world_size: Count = 1

    def __post_init__(self) -> None:
        if self.rank >= self.world_size:
            raise ConfigError("rank", self.rank, f"an integer in [0, {self.world_size})")


class ScoredImages(RecordStore):
    """The scores of every finished image of one run on disk, shared by all its processes.

    ``run`` is what decides the scores, in JSON types; ``rank`` is the number of this process.

    Raises
    ------
    JournalError
        If the folder cannot be used or holds something else.
    HeadScoreError
        If it holds the journal of another run.
    """

    def __init__(self, folder: str | Path, run: Mapping[str, Any], rank: int = 0):
        super().__init__(Path(folder), KIND, rank, unit="images", elsewhere=ELSEWHERE)
        self.run, self._key = dict(run), RUN + digest_of(dict(run))
        other = next((key for key in self if key.startswith(RUN) and key != self._key), None)
        if other is not None:
            theirs = self[other]
            self.close()
            settings = [
                f"{name}={theirs.get(name)!r} there, {self.run.get(name)!r} here"
                for name in sorted({*theirs, *self.run})
                if theirs.get(name) != self.run.get(name)
            ]
            another = f"belongs to another run: {', '.join(settings)}; {ELSEWHERE} or remove it"
            raise HeadScoreError(f"journal {str(folder)!r} {another}")

    def add(self, scores: Mapping[int, ImageScore]) -> None:
        """Store finished images by number, the first of them with what decided the scores."""
        self.recall(self._key, lambda: self.run)
        records = {}
        for number, score in scores.items():
            tables = {"scores": score.scores.tolist(), "hits": score.hits.tolist()}
            records[str(number)] = {**vars(score), **tables, "bad_boxes": dict(score.bad_boxes)}
        self.append(records)

    def read(self) -> dict[int, ImageScore]:
        """Finished images of all processes, by number, in ascending order."""
        found = {}
        for number in sorted(int(key) for key in self if not key.startswith(RUN)):
            stored = self[str(number)]
            scores = torch.tensor(stored["scores"], dtype=torch.float64)
            found[number] = ImageScore(**{**stored, "scores": scores, "hits": torch.tensor(stored["hits"])})
        return found


def score_heads(
    model: PreTrainedModel,
    processor: Any,
    anchor: Anchor,
    rule: ScoringRule,
    work: Workload,
    journal: str | Path | None = None,
    origin: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> dict[int, ImageScore]:
    """Score images one batch at a time.

    Parameters
    ----------
    journal : path, optional
        Folder where finished images are stored; images found there are not scored again.
    origin : mapping, optional
        Names model and source, so that a journal of others is refused.
    progress : bool
        Show a progress bar with the time left.

    Returns
    -------
    dict
        ImageScore by image number, ascending: this process's images, and with a journal also what was found
        there. ``summarise`` makes head scores of it.

    Raises
    ------
    ConfigError, HeadScoreError, JournalError, UnsupportedError
    """
    if anchor.size is not None and work.images > anchor.size:
        remedy = f"at most {anchor.size}, all that anchor {anchor.name!r} has"
        raise ConfigError("images", work.images, remedy)
    identity = describe(anchor, rule, work, origin)
    with nullcontext() if journal is None else ScoredImages(journal, identity, work.rank) as book:
        known = {} if book is None else book.read()
        scores = {number: score for number, score in known.items() if number < work.images}
        rest = [n for n in range(work.rank, work.images, work.world_size) if n not in scores]
        with tqdm(total=len(rest), unit="image", disable=not progress, desc="scoring heads") as bar:
            for batch in _batches(anchor, work, rest):
                each = score_batch(model, processor, list(batch.values()), rule)
                found = dict(zip(batch, each, strict=True))
                if book is not None:
                    book.add(found)
                scores |= found
                bar.update(len(batch))
    return dict(sorted(scores.items()))


def describe(
    anchor: Anchor, rule: ScoringRule, work: Workload, origin: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that decides an image's scores, in JSON types; the start of a table's provenance."""
    settings = {**asdict(rule), "anchor": anchor.name, "seed": work.seed, "package_version": __version__}
    return {**(origin or {}), **settings}


def summarise(images: Mapping[int, ImageScore], provenance: Mapping[str, Any]) -> HeadScores:
    """Average the scores of images, by number, and normalise them to a sum of one.

    Returns
    -------
    HeadScores
        Its provenance also holds ``images``, ``answer_tokens`` and ``tokens`` (those that counted) as
        numbers, ``bad_boxes`` by reason, ``hits`` as [L, H] counts, and ``standard_error`` as [L, H]: of the
        mean over images, on the table's scale; null for a single image.

    Raises
    ------
    HeadScoreError
        If no head ever looked at what it was about to say.
    """
    ordered = [images[index] for index in sorted(images)]
    count, tokens = len(ordered), sum(image.tokens for image in ordered)
    answer_tokens = sum(image.answer_tokens for image in ordered)
    stack = torch.stack([image.scores for image in ordered])  # [images, L, H]
    if not stack.any():
        raise HeadScoreError(
            f"no scores: {tokens} of {answer_tokens} answer tokens in {count} images counted, and no head "
            "looked at any of their boxes. Does the model read this kind of image, and does the anchor fit "
            "it? mode='teacher' does without its answers"
        )
    mean = stack.mean(0)
    total = mean.sum()
    found = {
        "images": count,
        "answer_tokens": answer_tokens,
        "tokens": tokens,
        "bad_boxes": dict(sum((Counter(image.bad_boxes) for image in ordered), Counter())),
        "hits": torch.stack([image.hits for image in ordered]).sum(0).tolist(),
        "standard_error": (stack.std(0) / math.sqrt(count) / total).tolist() if count > 1 else None,
    }
    return HeadScores(mean / total, {**provenance, **found})


def _batches(anchor: Anchor, work: Workload, numbers: list[int]) -> Iterator[dict[int, AnchorSample]]:
    """Samples by number; images of similar size and length share a batch, so that little is padding."""
    stretch = SORTED_BATCHES * work.batch_size
    for start in range(0, len(numbers), stretch):
        samples = {number: anchor.sample(work.seed, number) for number in numbers[start : start + stretch]}
        order = sorted(samples, key=lambda number: _cost(samples[number]))
        for first in range(0, len(order), work.batch_size):
            yield {number: samples[number] for number in order[first : first + work.batch_size]}


def _cost(sample: AnchorSample) -> float:
    """About how many tokens a sequence has, whatever the model."""
    image = sample.image
    shown = len(sample.shown) if image is None else image.width * image.height / PIXELS_PER_TOKEN
    return shown + len(sample.answer)
