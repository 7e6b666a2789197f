"""The visual scores of a model's heads from many images, resumable and in shares, and the table they make."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from sparsemm_eval import __version__
from sparsemm_eval.checks import Count, Natural, record
from sparsemm_eval.errors import ConfigError, HeadScoreError
from sparsemm_eval.files import check_target, remove_records, source_digest
from sparsemm_eval.heads.anchors.record import Anchor, AnchorSample
from sparsemm_eval.heads.anchors.registry import anchor_named
from sparsemm_eval.heads.scores import facts as table_facts
from sparsemm_eval.heads.scores.lookup import cache_folder, file_name
from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.heads.scoring.batch_scores import ImageScore, ScoringRule, score_batch
from sparsemm_eval.heads.scoring.scored_images import KIND, ScoredImages
from sparsemm_eval.model import checkpoint
from sparsemm_eval.model.placement import Placement

# Images of so many batches are sorted by length together; all of them are in memory at a time.
SORTED_BATCHES = 8
PIXELS_PER_TOKEN = 16**2


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


def run(
    model: str,
    revision: str | None,
    placement: Placement,
    anchor: str,
    data: str | None,
    rule: ScoringRule,
    work: Workload,
    out: Path | None,
    journal: Path | None,
    say: Callable[[str], None],
) -> None:
    """Load a model, score the images in all processes and write the table.

    Parameters
    ----------
    model, revision : str
        Shipped reader, hub id or folder; and a hub model's branch, tag or commit.
    anchor, data : str
        Name of the anchor, and where a stored anchor's images and boxes are.
    rule : ScoringRule
        Its ``rule`` is replaced by the anchor's own.
    work : Workload
        Without the shares of processes, which the launcher decides.
    out : Path, optional
        File of the table; None: the user's own tables, where ``head_scores`` finds it by the model's name.
    journal : Path, optional
        Folder of finished images; None: beside ``out``, removed when the table is written.
    """
    out = out or cache_folder() / file_name(model)
    check_target("out", out)
    finished = journal or out.with_name(out.name + ".journal")
    check_target("journal", finished, folder=True)
    source = anchor_named(anchor, data)
    rule = replace(rule, rule=source.rule)
    mine = replace(work, rank=placement.rank, world_size=placement.world_size)
    loaded = checkpoint.load(checkpoint.find(model, revision, "model"), placement)
    origin = {
        "model": loaded.name,
        "weights": loaded.fingerprint["weights"],
        "revision": loaded.source.commit,
        "data": data and Path(data).name,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
    }
    identity = {**origin, "files": loaded.fingerprint["files"], "source": source_digest()}
    started = time.perf_counter()
    arguments = (loaded.model, loaded.processor, source, rule)
    score_heads(*arguments, mine, finished, identity, progress=placement.rank == 0)
    placement.accelerator.wait_for_everyone()
    placement.accelerator.end_training()
    if placement.rank != 0:
        return
    # Reading the journal again finds the images of the other processes.
    images = score_heads(*arguments, work, finished, identity)
    seconds = time.perf_counter() - started
    scores = summarise(images, describe(source, rule, work, origin))
    scores.save(out)
    if journal is None:
        remove_records(finished, KIND)
    for line in [*table_facts.lines(scores, top=5), f"{seconds:.1f} s, written to {out}"]:
        say(line)


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
                    book.append(found)
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
