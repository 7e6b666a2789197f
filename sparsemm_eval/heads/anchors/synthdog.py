"""SynthDoG with boxes, the paper's anchor: documents of words with the box of every text line.

The column ``2_coord`` lists the text lines: ``chunk`` is the text, ``coord`` the corners
[(left, top), (right, bottom)] in pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsemm_eval.errors import ConfigError, reason_of
from sparsemm_eval.heads.anchors import stored
from sparsemm_eval.heads.anchors.record import Anchor, AnchorSample, StoredAnchor, TextBox

HUB_NAME = "nnethercott/synthdog-en-detection"
COLUMN = "2_coord"


def _open(data: str | None) -> Anchor:
    """Parquet files of a folder, or a data set of the hub; None: the published one."""
    import datasets

    source = data or HUB_NAME
    try:
        if Path(source).is_dir():
            files = sorted(str(path) for path in Path(source).rglob("*.parquet"))
            rows = datasets.load_dataset("parquet", data_files=files, split="train")
        else:
            rows = datasets.load_dataset(source, split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        remedy = f"a folder with parquet files or a hub data set ({reason_of(error)})"
        raise ConfigError("data", source, remedy) from error
    if {"image", COLUMN} - set(rows.column_names):
        remedy = f"rows with the columns image and {COLUMN}, not {rows.column_names}"
        raise ConfigError("data", source, remedy)

    def read(number: int) -> AnchorSample:
        return _sample(rows[number], f"synthdog-{number}")

    return stored.shuffled("synthdog", range(len(rows)), read)


def _sample(row: dict[str, Any], name: str) -> AnchorSample:
    lines = row[COLUMN]
    if isinstance(lines, dict):  # a sequence of records arrives as a record of sequences
        lines = [dict(zip(lines, values, strict=True)) for values in zip(*lines.values(), strict=True)]
    pairs = [TextBox(line["chunk"], stored.box_of_polygon(line["coord"])) for line in lines]
    return stored.text_sample(name, row["image"], pairs, stored.READ_REQUEST)


ANCHORS = (StoredAnchor("synthdog", _open),)
