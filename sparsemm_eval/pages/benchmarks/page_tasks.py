"""The documents of the page tasks: held-out pages, and others to choose settings on."""

from __future__ import annotations

from functools import partial
from typing import Any

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
