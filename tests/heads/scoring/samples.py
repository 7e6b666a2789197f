"""Samples for models with random weights: boxes with one character each, so that some answer tokens count."""

from __future__ import annotations

import random
import string
from functools import cache

from sparsemm_eval.heads.anchors.record import Anchor, AnchorSample, TextBox
from sparsemm_eval.pages.drawing.render import make_page
from sparsemm_eval.pages.readers.registry import build

SIZES = ((8, 16), (16, 16), (8, 24))


def character_sample(seed: int, index: int) -> AnchorSample:
    """Boxes of all kinds of sizes; most characters have one, a few have two and so do not count."""
    rows, columns = SIZES[index % len(SIZES)]
    page = make_page("train", 1000 + seed, index, (rows, columns))
    draw = random.Random(f"{seed}-{index}")
    boxes = []
    for character in string.printable[:94] + "abcABC":
        left, top = draw.uniform(0, 16 * columns - 70), draw.uniform(0, 16 * rows - 40)
        boxes.append(TextBox(character, (left, top, left + draw.uniform(1, 70), top + draw.uniform(1, 40))))
    return AnchorSample(f"characters-{index}", page.image, "read all text", page.text(), tuple(boxes))


CHARACTERS = Anchor("characters", "unique", character_sample, size=40)


@cache
def processor_of(family: str):
    """The processor of a tiny model."""
    return build(family)[1]
