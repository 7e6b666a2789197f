"""What the evidence measures on a shipped reader, and its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparsemm_eval.evidence.sources import Source, sources
from sparsemm_eval.files import RecordStore, digest_of, source_digest
from sparsemm_eval.heads.anchors.pages import SPLIT
from sparsemm_eval.heads.anchors.stored import box_around
from sparsemm_eval.heads.figures import plots
from sparsemm_eval.heads.figures.word_attention import WordAttention, chosen_heads, save_sheet, word_attention
from sparsemm_eval.heads.scores.lookup import resolve
from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.heads.scoring.batch_scores import ScoringRule
from sparsemm_eval.heads.scoring.score_heads import Workload, score_heads
from sparsemm_eval.model import checkpoint
from sparsemm_eval.model.checkpoint import Checkpoint
from sparsemm_eval.model.placement import place
from sparsemm_eval.model.shipped import BUILT
from sparsemm_eval.pages.drawing.render import Page, make_page
from sparsemm_eval.pages.readers.questions import READ_QUESTION

#: How much is measured: images of each kind.
EFFORTS = {"full": 60, "half": 24, "trial": 4}


@dataclass(frozen=True)
class Evidence:
    """What was measured beside the study of the document."""

    reader: Checkpoint
    effort: str  # name of one of `EFFORTS`
    kinds: list[Source]
    stacks: Mapping[str, torch.Tensor]  # kind to float64 [images, L, H], scores of single images
    counted: Mapping[str, int]  # kind to how many answer tokens counted
    word: WordAttention
    on_word: float  # part of the best head's attention on the image that lies on the word's box


def measure(reader: str, effort: str, work: Path, stored: Mapping[str, str], figures: Path) -> Evidence:
    """Measure everything and draw the figures.

    Parameters
    ----------
    reader : str
        A shipped reader with shipped head scores.
    effort : str
        Name of one of `EFFORTS`.
    work : pathlib.Path
        Folder of measurements; those of the same reader, scores and source are taken from there.
    stored : mapping
        See ``sources``.
    figures : pathlib.Path
    """
    images, shipped = EFFORTS[effort], resolve(None, reader)
    loaded = checkpoint.load(checkpoint.find(reader, argument="--reader"), place("cpu", None, "float32"))
    identity = {
        "reader": loaded.fingerprint,
        "scores": shipped.digest(),
        "images": images,
        "stored": dict(stored),
        "source": source_digest(),
    }
    kinds = sources(work / "shapes", images, stored, reader in BUILT)
    stacks, counted = {}, {}
    with RecordStore(work, "measured", unit="measurements", elsewhere="choose another --work") as store:

        def measured(what: str, make: Callable[[], Any]) -> Any:
            print(what, flush=True)
            return store.recall(digest_of({**identity, "what": what}), make)

        for kind in kinds:
            found = measured(f"scores from {kind.name}", partial(_score, loaded, kind, images))
            stacks[kind.name] = torch.tensor(found["scores"], dtype=torch.float64)
            counted[kind.name] = found["tokens"]
    plots.save_head_map(shipped, figures / "head-map.png", f"head scores of {loaded.name}")
    pair = tuple(stacks)[:2]
    tables = (HeadScores(stacks[name].mean(0)) for name in pair)
    plots.save_comparison(*tables, pair, figures / "two-sets-of-pages.png")
    page, number = make_page(SPLIT, 41, 0, (8, 16)), 1
    entry, heads = page.entries[number], chosen_heads(shipped, 3, 3)
    word = word_attention(loaded.model, loaded.processor, page.image, READ_QUESTION, entry.value)
    save_sheet(word, shipped, heads, figures / "word.png", marks=[box_around(page.value_boxes(entry))])
    on_word = share_on(word, heads[0], page, number)
    return Evidence(loaded, effort, kinds, stacks, counted, word, on_word)


def _score(loaded: Checkpoint, kind: Source, images: int) -> dict[str, Any]:
    rule = ScoringRule(kind.mode, kind.anchor.rule)
    found = score_heads(loaded.model, loaded.processor, kind.anchor, rule, Workload(images, 4, kind.seed))
    return {
        "scores": [image.scores.tolist() for image in found.values()],
        "tokens": sum(image.tokens for image in found.values()),
    }


def share_on(seen: WordAttention, head: tuple[int, int], page: Page, number: int) -> float:
    """Part of a head's attention on the image that lies on cells of an entry's value."""
    heat = seen.maps[head]
    cells = page.entries[number].value_cells
    return float(sum(heat[row, column] for row, column in cells) / heat.sum())
