"""Data sets of pages: the page tasks' documents, and files of these and of the stand-ins for benchmarks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from sparsemm_eval.checks import Count, Natural, checked
from sparsemm_eval.pages.benchmarks.stand_ins import DEFAULT_COUNT, DEFAULT_SEED, STAND_INS
from sparsemm_eval.pages.drawing.layout import PAGE_SIZES, READING_SIZES, Entry, keyed_once
from sparsemm_eval.pages.drawing.render import Page, make_page
from sparsemm_eval.pages.readers.questions import READ_QUESTION, VALUE_QUESTION

SEED, DEV_SEED = 2, 102  # of reported results, and of what settings are chosen on
MANY = (2, 4, 8, 16)  # pages at once
SHORT_NUMBERS = ("rows", "columns", "entries", "answer_row", "answer_column")


def _row(name: str, page: Page, question: str, answer: str, entry: Entry | None = None) -> dict[str, Any]:
    areas = [area for one in page.entries for area in (one.key_area, one.value_area)]
    return {
        "id": name,
        "image": {"bytes": page.png(), "path": f"{name}.png"},
        "question": question,
        "answer": answer,
        "rows": page.rows,
        "columns": page.columns,
        "entries": len(page.entries),
        "answer_row": -1 if entry is None else entry.row,
        "answer_column": -1 if entry is None else entry.value_cells[0][1],
        "evidence": [list(area) for area in (areas if entry is None else [entry.value_area])],
    }


def qa_rows(count: int = 200, seed: int = SEED) -> list[dict[str, Any]]:
    """Value questions, one per held-out page, page sizes taking turns.

    Columns: id, image (PNG bytes), question, answer, rows, columns (page size in cells), entries (printed on
    the page), answer_row, answer_column (cell of the answer's first character), evidence (the cells that the
    answer is read from, as boxes of pixels: left, top, right, bottom; right and bottom exclusive).
    """
    rows = []
    for i in range(count):
        page = make_page("heldout", seed, i, PAGE_SIZES[i % len(PAGE_SIZES)])
        entry = page.entry_asked_for(i)
        rows.append(_row(f"qa-{i:04d}", page, VALUE_QUESTION.format(key=entry.key), entry.value, entry))
    return rows


def ocr_rows(count: int = 64, seed: int = SEED) -> list[dict[str, Any]]:
    """Pages to read whole, with the columns of `qa_rows`; the answer has no cell, which is -1."""
    pages = [make_page("heldout", seed + 1, i, READING_SIZES[i % len(READING_SIZES)]) for i in range(count)]
    return [_row(f"ocr-{i:04d}", page, READ_QUESTION, page.text()) for i, page in enumerate(pages)]


def many_rows(pages: int, count: int = 12, seed: int = SEED) -> list[dict[str, Any]]:
    """Value questions about several held-out pages of 16 x 24 cells at once, 464 LLaVA-NeXT tokens each.

    Columns: id, images, question (for a key that one page alone has), answer, pages, answer_page.
    """
    rows = []
    for i in range(count):
        shown = [make_page("heldout", seed + 1 + pages, i * pages + k, PAGE_SIZES[-1]) for k in range(pages)]
        asked = keyed_once(shown)
        entry = asked[i * 7919 % len(asked)]
        name = f"many-{pages}-{i:04d}"
        images = [{"bytes": page.png(), "path": f"{name}-{k}.png"} for k, page in enumerate(shown)]
        rows.append(
            {
                "id": name,
                "images": images,
                "question": VALUE_QUESTION.format(key=entry.key),
                "answer": entry.value,
                "pages": pages,
                "answer_page": next(k for k, page in enumerate(shown) if entry in page.entries),
            }
        )
    return rows


#: Every page task's documents.
TASKS = {
    "pages_qa": qa_rows,
    "pages_ocr": ocr_rows,
    "pages_qa_dev": lambda: qa_rows(80, DEV_SEED),
    "pages_ocr_dev": lambda: ocr_rows(24, DEV_SEED),
    **{f"pages_many_{pages}": partial(many_rows, pages) for pages in MANY},
}


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
    for task, rows in TASKS.items():
        paths.append(folder / f"{task}.parquet")
        _save(rows(), SHORT_NUMBERS, paths[-1])
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
