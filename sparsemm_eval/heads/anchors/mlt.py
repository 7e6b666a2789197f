"""ICDAR MLT 2017 and 2019: scene text of many scripts, a box for every word.

Ground truth is ``gt_NAME.txt`` (2017, and the competitions' description) or ``NAME.txt`` (the training set of
2019: ``tr_img_00001.txt``). A line is ``x1,y1,x2,y2,x3,y3,x4,y4,script,transcription``; the transcription may
hold commas, and is ``###`` where nobody could read it.
"""

from __future__ import annotations

from pathlib import Path

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.anchors import stored
from sparsemm_eval.heads.anchors.record import TextBox

LINE = "x1,y1,x2,y2,x3,y3,x4,y4,script,transcription"


def _items(folder: Path) -> list[tuple[str, Path, Path]]:
    images, items = stored.image_files(folder), []
    for truth in sorted(folder.rglob("*.txt")):
        name = truth.stem.removeprefix("gt_")
        if name in images:
            items.append((name, images[name], truth))
        elif truth.stem != name:  # other text files are no ground truth
            raise ConfigError("data", str(folder), f"an image for {truth.name}")
    return items


def _boxes(truth: Path) -> list[TextBox]:
    pairs = []
    for number, line in stored.lines_of(truth):
        fields = line.split(",", 9)
        with stored.format_expected(f"{truth.name}:{number}", LINE):
            corners = [float(field) for field in fields[:8]]
            if fields[9] != stored.UNREADABLE:
                points = zip(corners[::2], corners[1::2], strict=True)
                pairs.append(TextBox(fields[9], stored.box_of_polygon(points)))
    return pairs


HOLDS = "images NAME.jpg and ground truth gt_NAME.txt or NAME.txt"
ANCHORS = (stored.folder_anchor("mlt", HOLDS, _items, _boxes),)
