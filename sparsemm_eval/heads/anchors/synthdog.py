"""SynthDoG with boxes, the paper's anchor: documents of words with the box of every text line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.anchors.record import Anchor, AnchorSample, TextBox
from sparsemm_eval.heads.anchors.stored import READ_REQUEST, box_around, stored_anchor, text_sample

HUB_NAME = "nnethercott/synthdog-en-detection"
COLUMN = "2_coord"


def synthdog_anchor(data: str | None = None) -> Anchor:
    """Read parquet files of a folder, or a data set of the hub.

    The column ``2_coord`` lists the text lines: ``chunk`` is the text, ``coord`` the corners
    [(left, top), (right, bottom)] in pixels.

    Parameters
    ----------
    data : str, optional
        Folder or hub name; None: the published data set.

    Raises
    ------
    ConfigError
        If the data cannot be had or has other columns.
    """
    import datasets

    source = data or HUB_NAME
    try:
        if Path(source).is_dir():
            files = sorted(str(path) for path in Path(source).rglob("*.parquet"))
            rows = datasets.load_dataset("parquet", data_files=files, split="train")
        else:
            rows = datasets.load_dataset(source, split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ConfigError(
            "data", source, f"a folder with parquet files or a hub data set ({error})"
        ) from error
    missing = {"image", COLUMN} - set(rows.column_names)
    if missing:
        raise ConfigError(
            "data", source, f"rows with the columns image and {COLUMN}, not {rows.column_names}"
        )
    return stored_anchor("synthdog", range(len(rows)), lambda number: _sample(rows, number))


def _sample(rows: Any, number: int) -> AnchorSample:
    row = rows[number]
    lines = row[COLUMN]
    if isinstance(lines, dict):  # a sequence of records arrives as a record of sequences
        lines = [dict(zip(lines, values, strict=True)) for values in zip(*lines.values(), strict=True)]
    pairs = [TextBox(line["chunk"], box_around(line["coord"])) for line in lines]
    return text_sample(f"synthdog-{number}", row["image"], pairs, READ_REQUEST)
