"""Anchors made of stored data: a fixed number of images, taken in an order the seed decides."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.anchors.record import Anchor, AnchorSample, StoredAnchor, TextBox, check_boxes
from sparsemm_eval.model.image_tokens import Box
from sparsemm_eval.model.images import rgb_image

READ_REQUEST = "Read all the text in the image."
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")
UNREADABLE = "###"  # how annotators mark text that nobody can read
READING_ERRORS = (OSError, LookupError, TypeError, ValueError, SyntaxError)  # the last are XML's

Item = TypeVar("Item")


def folder_anchor(
    name: str,
    holds: str,
    items: Callable[[Path], Sequence[tuple[str, Path, Any]]],
    boxes: Callable[[Any], Iterable[TextBox]] = list,
    question: str = READ_REQUEST,
) -> StoredAnchor:
    """An anchor of images and ground truth anywhere below one folder.

    Parameters
    ----------
    holds : str
        What the folder must hold, for messages.
    items : callable
        ``(folder) -> items``, each a name, an image file and its ground truth.
    boxes : callable
        ``(ground truth) -> text boxes``, called when the image's sample is asked for.
    """

    def read(item: tuple[str, Path, Any]) -> AnchorSample:
        sample_name, path, truth = item
        pairs = boxes(truth)
        with format_expected(path.name, "an image file"), Image.open(path) as image:
            return text_sample(sample_name, image, pairs, question)

    def opened(data: str | None) -> Anchor:
        folder = None if data is None else Path(os.path.expanduser(data))
        if folder is None or not folder.is_dir():
            raise ConfigError("data", data, f"for anchor {name!r} a folder with {holds}")
        return shuffled(name, items(folder), read)

    return StoredAnchor(name, opened)


def shuffled(name: str, items: Sequence[Item], read: Callable[[Item], AnchorSample]) -> Anchor:
    """An anchor over items, each of which is read when its sample is asked for.

    Raises
    ------
    ConfigError
        If there are no items.
    """
    if not items:
        raise ConfigError("data", name, "at least one image with its boxes")

    @lru_cache(maxsize=1)
    def order(seed: int) -> list[int]:
        return random.Random(seed).sample(range(len(items)), len(items))

    def sample(seed: int, index: int) -> AnchorSample:
        return read(items[order(seed)[index]])

    return Anchor(name, "unique", sample, len(items))


def text_sample(name: str, image: Image.Image, pairs: Iterable[TextBox], question: str) -> AnchorSample:
    """A sample whose ground truth is the text of its boxes, line by line; bad boxes are counted, not used."""
    image = rgb_image(image)
    good, bad = check_boxes(list(pairs), *image.size)
    return AnchorSample(name, image, question, "\n".join(item.text for item in good), good, dict(bad))


@contextmanager
def format_expected(where: str, what: str) -> Iterator[None]:
    """Turn errors of reading into a ConfigError that names the place and the format expected there."""
    try:
        yield
    except ConfigError:
        raise
    except READING_ERRORS as error:
        raise ConfigError("data", where, f"{what} ({error!r})") from error


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a text file that are not blank, with their numbers from 1."""
    with format_expected(path.name, "text in UTF-8"):
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line


def box_of_size(left: float, top: float, width: float, height: float) -> Box:
    """A box by its corner and size."""
    return left, top, left + width, top + height


def box_around(boxes: Iterable[Box]) -> Box:
    """The smallest box around others."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def box_of_polygon(points: Iterable[tuple[float, float]]) -> Box:
    """The upright box around a polygon."""
    return box_around((x, y, x, y) for x, y in points)


def files_by_name(folder: Path) -> dict[str, Path]:
    """Files anywhere below a folder by their whole name."""
    return {path.name: path for path in folder.rglob("*") if path.is_file()}


def image_files(folder: Path) -> dict[str, Path]:
    """Images anywhere below a folder by their name without ending."""
    return {path.stem: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_ENDINGS}
