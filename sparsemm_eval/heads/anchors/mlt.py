"""ICDAR MLT 2017 and 2019: scene text of many scripts, a box for every word."""

from __future__ import annotations

from pathlib import Path

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

UNREADABLE = "###"


def mlt_anchor(data: str | None = None) -> Anchor:
    """Read the official layout: ``NAME.jpg`` and its ground truth anywhere below one folder.

    Ground truth is ``gt_NAME.txt`` (2017, and the competitions' description) or ``NAME.txt`` (the training
    set of 2019: ``tr_img_00001.txt``). A line is ``x1,y1,x2,y2,x3,y3,x4,y4,script,transcription``; the
    transcription may hold commas, and is ``###`` where nobody could read it.

    Raises
    ------
    ConfigError
        If the folder is missing, an image is, or a line is of another format.
    """
    folder = folder_of(data, "mlt", "images NAME.jpg and ground truth gt_NAME.txt or NAME.txt")
    images = image_files(folder)
    items = []
    for truth in sorted(folder.rglob("*.txt")):
        name = truth.stem.removeprefix("gt_")
        if name in images:
            items.append((name, images[name], truth))
        elif truth.stem != name:  # other text files are no ground truth
            raise ConfigError("data", str(folder), f"an image for {truth.name}")
    return stored_anchor("mlt", items, lambda item: _sample(*item))


def _sample(name: str, image: Path, truth: Path) -> AnchorSample:
    pairs = []
    for number, line in enumerate(truth.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        fields = line.split(",", 9)
        try:
            corners = [float(field) for field in fields[:8]]
            text = fields[9]
        except (ValueError, IndexError):
            raise ConfigError(
                "data", f"{truth.name}:{number}", "x1,y1,x2,y2,x3,y3,x4,y4,script,transcription"
            ) from None
        if text != UNREADABLE:
            pairs.append(TextBox(text, box_around(list(zip(corners[::2], corners[1::2], strict=True)))))
    return file_sample(name, image, pairs, READ_REQUEST)
