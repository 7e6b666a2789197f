"""What an anchor is: questions about images, and boxes around the text that answers them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from PIL.Image import Image

from sparsemm_eval.model.image_tokens import Box


@dataclass(frozen=True)
class TextBox:
    """A piece of text and where it stands."""

    text: str
    box: Box  # in image pixels; of a text that is shown: first character, 0, one after its last, 1
    start: int | None = None  # the text's place in the answer, in characters; for the rule ``aligned``


@dataclass(frozen=True)
class AnchorSample:
    """One question about one image, or about a text that stands in the prompt instead."""

    name: str  # unique in its anchor
    image: Image | None  # RGB; None: the question is about `shown`
    question: str
    answer: str  # ground truth
    boxes: tuple[TextBox, ...]  # of the image's text, checked
    bad_boxes: Mapping[str, int] = field(default_factory=dict)  # how many were left out, by reason
    shown: str = ""


@dataclass(frozen=True)
class Anchor:
    """A source of samples.

    Attributes
    ----------
    name : str
        Goes into the provenance of head scores.
    rule : str
        How tokens find their box, a name among ``TARGET_RULES`` of ``batch_scores``.
    sample : callable
        ``(seed, index) -> AnchorSample``; the same arguments give the same sample.
    size : int or None
        Number of samples there are; None: as many as wanted.
    """

    name: str
    rule: str
    sample: Callable[[int, int], AnchorSample]
    size: int | None = None


@dataclass(frozen=True)
class StoredAnchor:
    """An anchor whose images and boxes the user has; ``open`` gets what the user gave as ``data``."""

    name: str
    open: Callable[[str | None], Anchor]


def check_boxes(boxes: list[TextBox], width: int, height: int) -> tuple[tuple[TextBox, ...], Counter[str]]:
    """The boxes that can be used in an image of this size, and how many cannot, by reason."""
    good, bad = [], Counter()
    for item in boxes:
        left, top, right, bottom = item.box
        if not item.text.strip():
            bad["empty text"] += 1
        elif not (left < right and top < bottom):
            bad["empty box"] += 1
        elif left < 0 or top < 0 or right > width or bottom > height:
            bad["outside the image"] += 1
        else:
            good.append(item)
    return tuple(good), bad
