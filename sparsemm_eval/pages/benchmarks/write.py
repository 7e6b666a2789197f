"""Writing the data sets: files of the page tasks, and stand-ins where upstream's own tasks look for data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from sparsemm_eval.checks import Count, Natural, checked
from sparsemm_eval.pages.benchmarks import page_tasks
from sparsemm_eval.pages.benchmarks.stand_ins import DEFAULT_COUNT, DEFAULT_SEED, STAND_INS

_CARD = """---
configs:
- config_name: {config}
  data_files:
  - split: {split}
    path: {file}
---
Rendered pages of text with the columns of {repository}, for the tasks {tasks}.
This is not the benchmark and its scores say nothing about it.
"""


def write_page_tasks(directory: str | Path) -> list[Path]:
    """Write `TASK.parquet` for every page task to a folder, which is made when missing."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for task, rows in page_tasks.TASKS.items():
        paths.append(folder / f"{task}.parquet")
        _save(rows(), page_tasks.SHORT_NUMBERS, paths[-1])
    return paths


def write_stand_ins(
    directory: str | Path, count: int = DEFAULT_COUNT, seed: int = DEFAULT_SEED
) -> list[Path]:
    """Write a stand-in of `count` documents for every benchmark and return the data sets' folders.

    Upstream's tasks find the data when `directory`, which is made when missing, is the working directory.
    """
    checked(Count, "count", count)
    checked(Natural, "seed", seed)
    folders = []
    for number, stand_in in enumerate(STAND_INS):
        folder = Path(directory) / stand_in.repository
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / "fresh.parquet"
        _save(list(stand_in.rows(count, seed + number)), stand_in.short_numbers, fresh)
        card = _CARD.format(
            config=stand_in.config,
            split=stand_in.split,
            file=_named_by_content(fresh, stand_in.split),
            repository=stand_in.repository,
            tasks=", ".join(stand_in.tasks),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        folders.append(folder)
    return folders


def _save(rows: Sequence[Mapping[str, Any]], short_numbers: Sequence[str], path: Path) -> None:
    """Write rows to a parquet file; the first row tells the columns' types."""
    features = datasets.Features({name: _feature(value) for name, value in rows[0].items()})
    features.update({name: datasets.Value("int32") for name in short_numbers if name in features})
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)


def _feature(value: Any) -> Any:
    if isinstance(value, dict):
        is_image = "bytes" in value
        return datasets.Image() if is_image else {name: _feature(part) for name, part in value.items()}
    if isinstance(value, list):
        return datasets.List(_feature(value[0]))
    # Columns without a value in any row are text.
    return datasets.Value("int64" if isinstance(value, int) else "string")


def _named_by_content(fresh: Path, split: str) -> str:
    """Rename a data file by its content and remove all others from its folder.

    `datasets` caches a local data set by its card only; were other rows under the same file name, an
    earlier stand-in's would be evaluated.
    """
    name = f"{split}-{hashlib.sha256(fresh.read_bytes()).hexdigest()[:16]}.parquet"
    for old in fresh.parent.glob("*.parquet"):
        if old != fresh:
            old.unlink()
    fresh.rename(fresh.with_name(name))
    return name
