"""Anchors made of stored data: a fixed number of images, taken in an order the seed decides."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from PIL import Image

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.anchors.record import Anchor, AnchorSample, TextBox, check_boxes
from sparsemm_eval.model.image_tokens import Box

READ_REQUEST = "Read all the text in the image."
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")

Item = TypeVar("Item")


def stored_anchor(name: str, items: Sequence[Item], read: Callable[[Item], AnchorSample]) -> Anchor:
    """An anchor over items, each of which becomes a sample when its turn comes.

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

    return Anchor(name, "unique", lambda seed, index: read(items[order(seed)[index]]), len(items))


def text_sample(name: str, image: Image.Image, pairs: Iterable[TextBox], question: str) -> AnchorSample:
    """A sample whose ground truth is the text of its boxes, line by line; bad boxes are counted, not used."""
    image = image.convert("RGB")
    good, bad = check_boxes(list(pairs), *image.size)
    return AnchorSample(name, image, question, "\n".join(item.text for item in good), good, dict(bad))


def file_sample(name: str, path: Path, pairs: Iterable[TextBox], question: str) -> AnchorSample:
    """`text_sample` of an image file."""
    with Image.open(path) as image:
        return text_sample(name, image, pairs, question)


def box_around(points: Sequence[tuple[float, float]]) -> Box:
    """The upright box around a polygon."""
    across, down = zip(*points, strict=True)
    return min(across), min(down), max(across), max(down)


def folder_of(data: str | None, anchor: str, holds: str) -> Path:
    """The folder an anchor reads.

    Raises
    ------
    ConfigError
        If it is not given or there is none.
    """
    if data is None or not Path(data).is_dir():
        raise ConfigError("data", data, f"for anchor {anchor!r} a folder with {holds}")
    return Path(data)


def files_by_name(folder: Path) -> dict[str, Path]:
    """Files anywhere below a folder by their whole name."""
    return {path.name: path for path in folder.rglob("*") if path.is_file()}


def image_files(folder: Path) -> dict[str, Path]:
    """Images anywhere below a folder by their name without ending."""
    return {path.stem: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_ENDINGS}
