import io

import numpy as np
import pytest
from PIL import Image

from sparsemm_eval.pages.benchmarks.write import MANY, SEED, many_rows, ocr_rows, qa_rows, write_page_tasks
from sparsemm_eval.pages.drawing.layout import PAGE_SIZES, READING_SIZES
from sparsemm_eval.pages.drawing.render import make_page
from sparsemm_eval.tasks import FOLDER


def characters(page, boxes):
    """What stands in the cells of each box."""
    return [
        "".join(line[left // 16 : right // 16] for line in page.grid[top // 16 : bottom // 16])
        for left, top, right, bottom in boxes
    ]


def test_questions_are_about_the_page_shown():
    for i, row in enumerate(qa_rows(12)):
        page = make_page("heldout", SEED, i, PAGE_SIZES[i % len(PAGE_SIZES)])
        shown = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))
        assert np.array_equal(shown, np.asarray(page.image))
        key = row["question"].removeprefix("value of ").removesuffix("?")
        assert {entry.key: entry.value for entry in page.entries}[key] == row["answer"]
        line = page.grid[row["answer_row"]]
        assert line[row["answer_column"] :].startswith(row["answer"])
        assert "".join(characters(page, row["evidence"])) == row["answer"]


def test_reading_rows():
    for i, row in enumerate(ocr_rows(4)):
        page = make_page("heldout", SEED + 1, i, READING_SIZES[i % len(READING_SIZES)])
        assert row["question"] == "read all text"
        assert row["answer_row"] == -1
        assert len(row["answer"].split()) == 2 * row["entries"]
        assert sorted(row["answer"].split()) == sorted(characters(page, row["evidence"]))


def test_questions_about_many_pages_have_one_answer():
    for row in many_rows(4, 3):
        pages = [Image.open(io.BytesIO(image["bytes"])) for image in row["images"]]
        assert len(pages) == row["pages"] == 4
        assert {page.size for page in pages} == {(24 * 16, 16 * 16)}
        number = int(row["id"].rpartition("-")[2])
        shown = [make_page("heldout", SEED + 5, number * 4 + k, (16, 24)) for k in range(4)]
        assert np.array_equal(np.asarray(pages[2].convert("RGB")), np.asarray(shown[2].image))
        key = row["question"].removeprefix("value of ").removesuffix("?")
        found = [
            (k, entry.value) for k, page in enumerate(shown) for entry in page.entries if entry.key == key
        ]
        assert found == [(row["answer_page"], row["answer"])]


def test_files(tmp_path):
    datasets = pytest.importorskip("datasets")
    paths = write_page_tasks(tmp_path)
    names = ("pages_qa", "pages_ocr", "pages_qa_dev", "pages_ocr_dev", *(f"pages_many_{k}" for k in MANY))
    assert [path.stem for path in paths] == list(names)
    assert sum(path.stat().st_size for path in paths) < 5e6
    for path, count in zip(paths, (200, 64, 80, 24, 12, 12, 12, 12), strict=True):
        data = datasets.load_dataset(
            "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "c")
        )
        assert len(data) == count
        assert len(set(data["id"])) == count
        if "image" in data.column_names:
            assert data[0]["image"].size == (16 * data[0]["columns"], 16 * data[0]["rows"])
        shipped = datasets.load_dataset(
            "parquet",
            data_files=str(FOLDER / "pages" / "data" / path.name),
            split="train",
            cache_dir=str(tmp_path / "shipped"),
        )
        assert data.features == shipped.features
        pictures = list({"image", "images"} & set(data.column_names))
        assert data.remove_columns(pictures)[:] == shipped.remove_columns(pictures)[:]
