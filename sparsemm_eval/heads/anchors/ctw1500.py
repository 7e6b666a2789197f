"""SCUT-CTW1500: curved scene text, a polygon for every text line.

Ground truth has its image's name and is XML (training images: ``box`` elements with left, top, width, height
and a ``label``, besides the polygon in ``segs``) or text (test images: lines
``x1,y1,…,x14,y14,####transcription``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.anchors import stored
from sparsemm_eval.heads.anchors.record import TextBox

SEPARATOR = ",####"


def _items(folder: Path) -> list[tuple[str, Path, Path]]:
    # test images are 1001.jpg with ground truth 0001001.txt
    images = {stem.lstrip("0"): path for stem, path in stored.image_files(folder).items()}
    items = []
    for truth in sorted([*folder.rglob("*.xml"), *folder.rglob("*.txt")]):
        name = truth.stem.lstrip("0")
        if name not in images:
            raise ConfigError("data", str(folder), f"an image for {truth.name}")
        items.append((name, images[name], truth))
    return items


def _boxes(truth: Path) -> list[TextBox]:
    read = _from_xml if truth.suffix == ".xml" else _from_text
    with stored.format_expected(truth.name, "the official CTW1500 ground truth"):
        return [pair for pair in read(truth) if pair.text != stored.UNREADABLE]


def _from_xml(truth: Path) -> Iterator[TextBox]:
    for box in ElementTree.parse(truth).iter("box"):
        edges = (float(box.get(edge)) for edge in ("left", "top", "width", "height"))
        yield TextBox(box.findtext("label", ""), stored.box_of_size(*edges))


def _from_text(truth: Path) -> Iterator[TextBox]:
    for _, line in stored.lines_of(truth):
        numbers, separator, text = line.partition(SEPARATOR)
        if not separator:
            raise ValueError(f"no {SEPARATOR!r} in {line!r}")
        values = [float(number) for number in numbers.split(",")]
        yield TextBox(text, stored.box_of_polygon(zip(values[::2], values[1::2], strict=True)))


HOLDS = "images NAME.jpg and ground truth NAME.xml or NAME.txt"
ANCHORS = (stored.folder_anchor("ctw1500", HOLDS, _items, _boxes),)
