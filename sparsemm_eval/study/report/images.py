"""Small pictures of documents, where a task's images can be had without network."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsemm_eval.model.images import rgb_image
from sparsemm_eval.study.cell_files import CellFiles
from sparsemm_eval.tasks import FOLDER

SIDE = 360
#: Whoever wrote a results file names its data set: no script, URL or file of this machine is opened for it.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TIMEOUT_SECONDS = 120


def thumbnails(
    cells: Sequence[CellFiles], documents: Iterable[tuple[str, int]]
) -> tuple[dict[str, str], dict[str, str]]:
    """Pictures of documents, each a task and a ``doc_id``; the cells' results tell where these come from.

    Returns ``"task/doc_id"`` -> data URI, and task -> why it has no pictures.
    """
    wanted: dict[str, list[int]] = {}
    for task, doc in sorted(documents):
        wanted.setdefault(task, []).append(doc)
    found = [files.results.contents.get("configs", {}) for files in cells if files.done]
    configs = dict(ChainMap(*found))
    images, without = {}, {}
    for task, docs in wanted.items():
        found = _of_task(task, docs, configs.get(task, {}))
        if isinstance(found, str):
            without[task] = found
        else:
            images |= {f"{task}/{doc}": uri for doc, uri in found.items()}
    return images, without


def data_uri(encoded: bytes, side: int = SIDE) -> str:
    """An image file's bytes as a small picture; PNG or JPEG, whichever is shorter."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        small = rgb_image(image)
    small.thumbnail((side, side))
    candidates = []
    for kind, options in (("PNG", {"optimize": True}), ("JPEG", {"quality": 80})):
        buffer = io.BytesIO()
        small.save(buffer, kind, **options)
        candidates.append((buffer.tell(), kind.lower(), buffer.getvalue()))
    _, kind, content = min(candidates)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _of_task(task: str, docs: list[int], config: Mapping[str, Any]) -> dict[int, str] | str:
    shipped = FOLDER / "pages" / "data" / f"{task}.parquet"
    if shipped.is_file():
        return _from_parquet(shipped, docs)
    if config.get("process_docs") is not None:
        return "the task filters its documents, so that their numbers do not name rows of the data set"
    if not _HUB_NAME.fullmatch(str(config.get("dataset_path"))):
        return "the results do not name a data set of the hub that this machine may have"
    return _from_data_set(docs, config)


def _from_parquet(path: Path, docs: list[int]) -> dict[int, str] | str:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(path)
    if "image" not in rows.column_names:
        return "its documents have several images each"
    column = rows["image"]
    return {doc: data_uri(column[doc].as_py()["bytes"]) for doc in docs if doc < len(column)}


def _from_data_set(docs: list[int], config: Mapping[str, Any]) -> dict[int, str] | str:
    # In a process of its own: whether the hub may be asked is decided when `datasets` is imported.
    request = {
        "path": config["dataset_path"],
        "name": config.get("dataset_name"),
        "split": config.get("test_split") or config.get("validation_split"),
        "docs": docs,
    }
    try:
        child = subprocess.run(
            [sys.executable, "-m", "sparsemm_eval.study.report.images"],
            input=json.dumps(request),
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"reading {request['path']} took more than {_TIMEOUT_SECONDS} s"
    if child.returncode:
        lines = child.stderr.strip().splitlines() or [f"exit status {child.returncode}"]
        return f"{request['path']} cannot be read without network ({lines[-1][:200]})"
    return {int(doc): uri for doc, uri in json.loads(child.stdout.splitlines()[-1]).items()}


def of_rows(request: Mapping[str, Any]) -> dict[int, str]:
    """Row number -> data URI of the row's ``image``; what the process of its own does.

    ``path``, ``name`` and ``split`` are as for ``datasets.load_dataset``, ``docs`` are row numbers.
    """
    import datasets

    rows = datasets.load_dataset(request["path"], request["name"], split=request["split"])
    found = {}
    for doc in request["docs"]:
        buffer = io.BytesIO()
        rgb_image(rows[doc]["image"]).save(buffer, "PNG")
        found[doc] = data_uri(buffer.getvalue())
    return found


def _refuse(*_: Any) -> None:
    raise OSError("no network for pictures")


if __name__ == "__main__":
    socket.socket.connect = _refuse
    print(json.dumps(of_rows(json.load(sys.stdin))))
