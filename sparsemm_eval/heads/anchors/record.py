"""What an anchor is: questions about images, and boxes around the text that answers them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from PIL.Image import Image

from sparsemm_eval.model.image_tokens import Box

RULES = ("unique", "aligned")


@dataclass(frozen=True)
class TextBox:
    """A piece of text and where it stands.

    Attributes
    ----------
    text : str
    box : tuple of 4 numbers
        (left, top, right, bottom) in image pixels; right and bottom exclusive.
    start : int or None
        Place of the text in the sample's answer, in characters; needed by the rule ``aligned``.
    """

    text: str
    box: Box
    start: int | None = None


@dataclass(frozen=True)
class AnchorSample:
    """One question about one image.

    Attributes
    ----------
    name : str
        Unique in its anchor.
    image : PIL.Image.Image
        RGB.
    question : str
    answer : str
        Ground truth.
    boxes : tuple of TextBox
        Of the image's text, checked.
    bad_boxes : mapping
        How many boxes were left out for which reason.
    """

    name: str
    image: Image
    question: str
    answer: str
    boxes: tuple[TextBox, ...]
    bad_boxes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Anchor:
    """A source of samples.

    Attributes
    ----------
    name : str
        Goes into the provenance of head scores.
    rule : str
        How tokens find their box, see ``target_tokens``: ``unique`` or ``aligned``.
    sample : callable
        ``(seed, index) -> AnchorSample``; the same arguments give the same sample.
    size : int or None
        Number of samples there are; None: as many as wanted.
    """

    name: str
    rule: str
    sample: Callable[[int, int], AnchorSample]
    size: int | None = None


def check_boxes(boxes: list[TextBox], width: int, height: int) -> tuple[tuple[TextBox, ...], Counter[str]]:
    """Sort out boxes that cannot be used.

    Returns
    -------
    (tuple of TextBox, Counter)
        The good ones, and how many were left out for which reason.
    """
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
