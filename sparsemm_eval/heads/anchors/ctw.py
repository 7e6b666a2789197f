"""CTW, Chinese Text in the Wild: street views with the boxes of their characters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.anchors.record import Anchor, TextBox
from sparsemm_eval.heads.anchors.stored import (
    READ_REQUEST,
    file_sample,
    files_by_name,
    folder_of,
    stored_anchor,
)


def ctw_anchor(data: str | None = None) -> Anchor:
    """Read ``*.jsonl`` files and the images they name, anywhere below one folder.

    A line describes one image: ``file_name`` and ``annotations``, a list of sentences, each a list of
    characters with ``text`` and ``adjusted_bbox``, [left, top, width, height] in pixels. A sentence becomes
    one text with the box around its characters; regions under ``ignore`` have no text and are left out.

    Raises
    ------
    ConfigError
        If the folder, its files or an image is missing, or a file is of another format.
    """
    folder = folder_of(data, "ctw", "*.jsonl files and the images they name")
    files = sorted(folder.rglob("*.jsonl"))
    if not files:
        raise ConfigError("data", str(folder), "a folder with *.jsonl files, for instance train.jsonl")
    paths = files_by_name(folder)
    items = [item for file in files for item in _items(file, paths)]
    return stored_anchor("ctw", items, lambda item: file_sample(item[0].stem, *item, READ_REQUEST))


def _items(file: Path, paths: dict[str, Path]) -> Iterator[tuple[Path, list[TextBox]]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            texts = [_sentence(characters) for characters in record["annotations"] if characters]
            if texts:
                yield paths[record["file_name"]], texts
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                "data", f"{file.name}, line {number}", f"a CTW annotation whose image exists ({error!r})"
            ) from error


def _sentence(characters: list[dict[str, Any]]) -> TextBox:
    boxes = [character["adjusted_bbox"] for character in characters]
    return TextBox(
        "".join(character["text"] for character in characters),
        (
            min(left for left, _, _, _ in boxes),
            min(top for _, top, _, _ in boxes),
            max(left + width for left, _, width, _ in boxes),
            max(top + height for _, top, _, height in boxes),
        ),
    )
