"""CTW, Chinese Text in the Wild: street views with the boxes of their characters.

A line of a ``*.jsonl`` file describes one image: ``file_name`` and ``annotations``, a list of sentences, each
a list of characters with ``text`` and ``adjusted_bbox``, [left, top, width, height] in pixels. A sentence
becomes one text with the box around its characters; regions under ``ignore`` have no text and are left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.anchors import stored
from sparsemm_eval.heads.anchors.record import TextBox


def _items(folder: Path) -> list[tuple[str, Path, list[TextBox]]]:
    files, items = sorted(folder.rglob("*.jsonl")), []
    if not files:
        raise ConfigError("data", str(folder), "a folder with *.jsonl files, for instance train.jsonl")
    paths = stored.files_by_name(folder)
    for file in files:
        for number, line in stored.lines_of(file):
            with stored.format_expected(f"{file.name}, line {number}", "a CTW annotation whose image exists"):
                record = json.loads(line)
                texts = [_sentence(characters) for characters in record["annotations"] if characters]
                if texts:
                    path = paths[record["file_name"]]
                    items.append((path.stem, path, texts))
    return items


def _sentence(characters: list[dict[str, Any]]) -> TextBox:
    text = "".join(character["text"] for character in characters)
    boxes = [stored.box_of_size(*character["adjusted_bbox"]) for character in characters]
    return TextBox(text, stored.box_around(boxes))


ANCHORS = (stored.folder_anchor("ctw", "*.jsonl files and the images they name", _items),)
