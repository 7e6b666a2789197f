"""Held-out page data of the tasks pages_qa and pages_ocr, as parquet files.

python -m sparsemm_eval.pages.tasks_data tasks/pages/data
"""

import argparse
import io
from pathlib import Path

from sparsemm_eval.pages.drawing.layout import PAGE_SIZES, READING_SIZES
from sparsemm_eval.pages.drawing.render import make_page
from sparsemm_eval.pages.prompts import READ_QUESTION, VALUE_QUESTION

QA_COUNT = 200
OCR_COUNT = 64
SEED = 2


def _png(page):
    # Pages have a few dozen grey levels; one channel keeps the file small, and readers convert to RGB.
    buffer = io.BytesIO()
    page.image.convert("L").save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _row(name, page, question, answer, entry=None):
    return {
        "id": name,
        "image": {"bytes": _png(page), "path": f"{name}.png"},
        "question": question,
        "answer": answer,
        "rows": page.rows,
        "columns": page.columns,
        "entries": len(page.entries),
        "answer_row": -1 if entry is None else entry.row,
        "answer_column": -1 if entry is None else entry.value_cells[0][1],
    }


def qa_rows(count=QA_COUNT, seed=SEED):
    """Value questions, one per held-out page, page sizes taking turns.

    Parameters
    ----------
    count, seed : int

    Returns
    -------
    list of dict
        Keys: id, image (PNG bytes), question, answer, rows, columns (page size in cells), entries (printed on
        the page), answer_row, answer_column (cell of the answer's first character).
    """
    rows = []
    for i in range(count):
        page = make_page("heldout", seed, i, PAGE_SIZES[i % len(PAGE_SIZES)])
        # A stride that is coprime to small counts, so that answers lie anywhere on the page.
        entry = page.entries[i * 7919 % len(page.entries)]
        rows.append(_row(f"qa-{i:04d}", page, VALUE_QUESTION.format(key=entry.key), entry.value, entry))
    return rows


def ocr_rows(count=OCR_COUNT, seed=SEED):
    """Pages to read whole; the same keys as `qa_rows`, with -1 for the answer's cell."""
    rows = []
    for i in range(count):
        page = make_page("heldout", seed + 1, i, READING_SIZES[i % len(READING_SIZES)])
        rows.append(_row(f"ocr-{i:04d}", page, READ_QUESTION, page.text()))
    return rows


def write(directory):
    """Write `pages_qa.parquet` and `pages_ocr.parquet`.

    Parameters
    ----------
    directory : path-like
        Made when missing.

    Returns
    -------
    list of pathlib.Path
    """
    import datasets

    integer, text = datasets.Value("int32"), datasets.Value("string")
    features = datasets.Features(
        {
            "id": text,
            "image": datasets.Image(),
            "question": text,
            "answer": text,
            **dict.fromkeys(("rows", "columns", "entries", "answer_row", "answer_column"), integer),
        }
    )
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, rows in (("pages_qa", qa_rows()), ("pages_ocr", ocr_rows())):
        paths.append(folder / f"{name}.parquet")
        datasets.Dataset.from_list(rows, features=features).to_parquet(paths[-1])
    return paths


def main(arguments=None):
    """Command line entry."""
    parser = argparse.ArgumentParser(description="Write the held-out data of the page tasks.")
    parser.add_argument("directory")
    for path in write(parser.parse_args(arguments).directory):
        print(f"{path}  {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
