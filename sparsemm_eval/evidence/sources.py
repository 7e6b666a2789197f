"""Kinds of images whose head scores are compared: pages of several styles, documents, shapes as a control."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from sparsemm_eval.heads.anchors.documents import DOCUMENT_LETTERS
from sparsemm_eval.heads.anchors.pages import PAGE_TEXT, PAGE_VALUES, PAGES, page_reading_sample
from sparsemm_eval.heads.anchors.record import Anchor
from sparsemm_eval.heads.anchors.registry import anchor_named

SHAPES = ("circle", "square", "triangle", "ring", "cross", "bar")
SIZE = 256
# Seeds of pages that nothing else uses.
FIRST, SECOND = 31, 32


@dataclass(frozen=True)
class Source:
    """A kind of images."""

    name: str
    text: str  # what the images show, for readers of the document
    anchor: Anchor
    seed: int
    mode: str  # ``generate`` where the reader answers, ``teacher`` where it is given the answer
    known: bool = False  # whether the reader was trained on such images


def sources(folder: Path, images: int, stored: Mapping[str, str], text: bool) -> list[Source]:
    """All kinds of images; the first is what the others are compared with.

    Parameters
    ----------
    folder : pathlib.Path
        Where the shapes are written.
    images : int
        How many of each kind.
    stored : mapping
        Anchors of published data that are there: name to folder.
    text : bool
        Whether the reader's language model knew how to copy text before it saw images.
    """
    write_shapes(folder, images)
    # A pretrained language model takes long to generate; its answers are given to it.
    mode = "teacher" if text else "generate"
    shapes = anchor_named("coco", str(folder))
    found = [
        Source("pages A", "pages of all sizes, read aloud", PAGES, FIRST, mode, known=True),
        Source("pages B", "the same with other pages", PAGES, SECOND, mode, known=True),
        Source("small pages", "pages of 8 x 16 cells only", _sized((8, 16)), FIRST, mode, known=True),
        Source("large pages", "pages of 16 x 24 cells only", _sized((16, 24)), FIRST, mode, known=True),
        Source("values", "one value looked up on a page", PAGE_VALUES, FIRST, mode, known=True),
        Source("documents", "lines of TrueType text off the grid", DOCUMENT_LETTERS, FIRST, "teacher"),
        Source("shapes", "COCO format: shapes and their names", shapes, 0, "teacher"),
    ]
    if text:
        found.append(Source("text", "the text of pages in the prompt, no image", PAGE_TEXT, FIRST, "teacher"))
    for name, data in stored.items():
        found.append(Source(name, f"published data, {name}", anchor_named(name, data), 0, "teacher"))
    return found


def _sized(size: tuple[int, int]) -> Anchor:
    return Anchor(f"pages-{size[0]}x{size[1]}", "aligned", partial(page_reading_sample, size=size))


def write_shapes(folder: Path, images: int, seed: int = 0) -> None:
    """Write images of plain shapes in COCO's format: objects without any text."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    record: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(SHAPES)],
    }
    for index in range(images):
        name = f"{index:06d}.png"
        record["images"].append({"id": index, "file_name": name, "width": SIZE, "height": SIZE})
        image = Image.new("RGB", (SIZE, SIZE), (draw.randint(170, 255),) * 3)
        # There is at most one shape in a quarter, so that none covers another.
        quarters = draw.sample([(0, 0), (1, 0), (0, 1), (1, 1)], draw.randint(2, 4))
        for quarter, kind in zip(quarters, draw.sample(range(len(SHAPES)), len(quarters)), strict=True):
            side = draw.randint(40, 100)
            left, top = (128 * part + draw.randint(4, 124 - side) for part in quarter)
            _shape(ImageDraw.Draw(image), SHAPES[kind], left, top, side, (draw.randint(0, 90),) * 3)
            record["annotations"].append(
                {"image_id": index, "category_id": kind, "bbox": [left, top, side, side]}
            )
        image.save(folder / name)
    (folder / "instances_shapes.json").write_text(json.dumps(record), encoding="utf-8")


def _shape(pen: Any, name: str, left: int, top: int, side: int, ink: tuple[int, int, int]) -> None:
    right, bottom, third = left + side - 1, top + side - 1, side // 3
    if name == "circle":
        pen.ellipse((left, top, right, bottom), fill=ink)
    elif name == "square":
        pen.rectangle((left, top, right, bottom), fill=ink)
    elif name == "triangle":
        pen.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=ink)
    elif name == "ring":
        pen.ellipse((left, top, right, bottom), outline=ink, width=max(3, side // 8))
    elif name == "cross":
        pen.rectangle((left + third, top, right - third, bottom), fill=ink)
        pen.rectangle((left, top + third, right, bottom - third), fill=ink)
    else:
        pen.rectangle((left, top + third, right, bottom - third), fill=ink)
