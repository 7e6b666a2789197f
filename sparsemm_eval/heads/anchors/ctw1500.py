"""SCUT-CTW1500: curved scene text, a polygon for every text line."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.anchors.record import Anchor, AnchorSample, TextBox
from sparsemm_eval.heads.anchors.stored import (
    READ_REQUEST,
    box_around,
    file_sample,
    folder_of,
    image_files,
    stored_anchor,
)

# text the annotators left out
UNREADABLE = "###"
SEPARATOR = ",####"


def ctw1500_anchor(data: str | None = None) -> Anchor:
    """Read images and their ground truth of the same name anywhere below one folder.

    Ground truth is XML (training images: ``box`` elements with left, top, width, height and a ``label``,
    besides the polygon in ``segs``) or text (test images: lines ``x1,y1,…,x14,y14,####transcription``).

    Raises
    ------
    ConfigError
        If the folder or an image is missing, or the ground truth is of another format.
    """
    folder = folder_of(data, "ctw1500", "images NAME.jpg and ground truth NAME.xml or NAME.txt")
    # test images are 1001.jpg with ground truth 0001001.txt
    images = {stem.lstrip("0"): path for stem, path in image_files(folder).items()}
    items = []
    for truth in sorted([*folder.rglob("*.xml"), *folder.rglob("*.txt")]):
        name = truth.stem.lstrip("0")
        if name not in images:
            raise ConfigError("data", str(folder), f"an image for {truth.name}")
        items.append((name, images[name], truth))
    return stored_anchor("ctw1500", items, lambda item: _sample(*item))


def _sample(name: str, image: Path, truth: Path) -> AnchorSample:
    read = _from_xml if truth.suffix == ".xml" else _from_text
    try:
        pairs = read(truth)
    except (ValueError, TypeError, ElementTree.ParseError) as error:
        raise ConfigError("data", truth.name, f"the official CTW1500 ground truth ({error})") from error
    return file_sample(name, image, [pair for pair in pairs if pair.text != UNREADABLE], READ_REQUEST)


def _from_xml(truth: Path) -> list[TextBox]:
    pairs = []
    for box in ElementTree.parse(truth).iter("box"):
        left, top, width, height = (float(box.get(edge)) for edge in ("left", "top", "width", "height"))
        pairs.append(TextBox(box.findtext("label", ""), (left, top, left + width, top + height)))
    return pairs


def _from_text(truth: Path) -> list[TextBox]:
    pairs = []
    for line in truth.read_text(encoding="utf-8-sig").splitlines():
        if not line.strip():
            continue
        numbers, separator, text = line.partition(SEPARATOR)
        if not separator:
            raise ValueError(f"no {SEPARATOR!r} in {line!r}")
        values = [float(number) for number in numbers.split(",")]
        pairs.append(TextBox(text, box_around(list(zip(values[::2], values[1::2], strict=True)))))
    return pairs
