"""score_heads: the visual scores of a model's heads from many images, resumable and in shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.anchors.record import Anchor, AnchorSample
from sparsemm_eval.heads.scoring.batch_scores import ImageScore, ScoringRule, score_batch
from sparsemm_eval.heads.scoring.scored_images import ScoredImages

# batches whose images are sorted by length together; all of them are in memory at a time
SORTED_BATCHES = 8
PIXELS_PER_TOKEN = 16**2


@dataclass(frozen=True)
class Workload:
    """Which images are scored, and which of them by this process.

    Attributes
    ----------
    images : int
        Number of images over all processes.
    batch_size : int
    seed : int
        Of the anchor.
    rank, world_size : int
        This process takes every ``world_size``-th image from ``rank`` on.
    """

    images: int = 200
    batch_size: int = 8
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        for argument in ("images", "batch_size", "world_size"):
            value = getattr(self, argument)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(argument, value, "an integer >= 1")
        if self.seed < 0:
            raise ConfigError("seed", self.seed, "an integer >= 0")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError("rank", self.rank, f"an integer in [0, {self.world_size})")


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
    model, processor
        See ``score_batch``.
    anchor : Anchor
    rule : ScoringRule
    work : Workload
    journal : path, optional
        Folder where finished images are put down; images found there are not scored again.
    origin : mapping, optional
        Names the model, so that a journal of another model is refused.
    progress : bool
        Show a progress bar with the time left.

    Returns
    -------
    dict
        ImageScore by image number, ascending: this process's images, and with a journal also what was found
        there. ``summarise`` makes head scores of it.

    Raises
    ------
    ConfigError, HeadScoreError, UnsupportedError
    """
    if anchor.size is not None and work.images > anchor.size:
        raise ConfigError(
            "images", work.images, f"at most {anchor.size}, all that anchor {anchor.name!r} has"
        )
    numbers = range(work.rank, work.images, work.world_size)
    if journal is None:
        return _score(model, processor, anchor, rule, work, list(numbers), None, progress)
    with ScoredImages(journal, describe(anchor, rule, work, origin), work.rank) as book:
        done = {number: score for number, score in book.read().items() if number < work.images}
        rest = [number for number in numbers if number not in done]
        return dict(
            sorted((done | _score(model, processor, anchor, rule, work, rest, book, progress)).items())
        )


def describe(
    anchor: Anchor, rule: ScoringRule, work: Workload, origin: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that decides an image's scores, in JSON types; the start of a table's provenance."""
    from sparsemm_eval import __version__

    settings = {**asdict(rule), "anchor": anchor.name, "seed": work.seed, "package_version": __version__}
    return {**(origin or {}), **settings}


def _score(
    model: PreTrainedModel,
    processor: Any,
    anchor: Anchor,
    rule: ScoringRule,
    work: Workload,
    numbers: list[int],
    book: ScoredImages | None,
    progress: bool,
) -> dict[int, ImageScore]:
    scores: dict[int, ImageScore] = {}
    with tqdm(total=len(numbers), unit="image", disable=not progress, desc="scoring heads") as bar:
        for batch in _batches(anchor, work, numbers):
            samples = list(batch.values())
            found = dict(zip(batch, score_batch(model, processor, samples, rule), strict=True))
            if book is not None:
                book.append(found)
            scores |= found
            bar.update(len(batch))
    return dict(sorted(scores.items()))


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
    return sample.image.width * sample.image.height / PIXELS_PER_TOKEN + len(sample.answer)
