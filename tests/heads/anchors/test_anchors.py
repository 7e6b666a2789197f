"""Anchors: the built-in pages, and checks every anchor's boxes go through."""

from __future__ import annotations

import numpy as np
import pytest

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.anchors.documents import DOCUMENT_LETTERS, DOCUMENTS
from sparsemm_eval.heads.anchors.pages import PAGE_VALUES, PAGES, SPLIT
from sparsemm_eval.heads.anchors.record import TextBox, check_boxes
from sparsemm_eval.heads.anchors.registry import anchor_named
from sparsemm_eval.pages.benchmarks.write import ocr_rows, qa_rows


@pytest.mark.parametrize("anchor", [PAGES, PAGE_VALUES], ids=lambda anchor: anchor.name)
def test_every_character_of_the_answer_has_the_box_of_its_ink(anchor):
    for index in range(20):
        sample = anchor.sample(0, index)
        assert "".join(item.text for item in sample.boxes) == "".join(sample.answer.split())
        assert all(sample.answer[item.start] == item.text for item in sample.boxes)
        good, bad = check_boxes(list(sample.boxes), *sample.image.size)
        assert (good, bad) == (sample.boxes, {})
        pixels = np.asarray(sample.image.convert("L")).astype(int)
        paper = int(np.median(pixels))
        for item in sample.boxes:
            left, top, right, bottom = item.box
            ink = np.abs(pixels[top:bottom, left:right] - paper) > 40
            assert ink.any()
            assert (left // 16, top // 16) == ((right - 1) // 16, (bottom - 1) // 16)


def test_reading_order_is_that_of_the_page():
    sample = PAGES.sample(3, 1)
    assert [item.start for item in sample.boxes] == sorted(item.start for item in sample.boxes)
    cells = [(item.box[1] // 16, item.box[0] // 16) for item in sample.boxes]
    assert cells == sorted(cells)


def test_samples_are_named_by_seed_and_index_and_differ_from_the_tasks():
    first, again, other = PAGES.sample(0, 4), PAGES.sample(0, 4), PAGES.sample(1, 4)
    assert first.answer == again.answer != other.answer
    assert first.image.tobytes() == again.image.tobytes()
    assert SPLIT == "train"  # no text of this split is in the evaluation tasks
    evaluated = {row["answer"] for row in ocr_rows(20)} | {row["answer"] for row in qa_rows(20)}
    assert not evaluated & {PAGES.sample(0, i).answer for i in range(50)}


@pytest.mark.parametrize("anchor", [DOCUMENTS, DOCUMENT_LETTERS], ids=lambda anchor: anchor.name)
def test_documents_have_ink_in_every_box_and_nowhere_else(anchor):
    for index in range(12):
        sample = anchor.sample(1, index)
        good, bad = check_boxes(list(sample.boxes), *sample.image.size)
        assert (good, bad) == (sample.boxes, {})
        assert len(good) >= 5
        dark = np.asarray(sample.image.convert("L")).astype(int) < 150
        inside = np.zeros_like(dark)
        edge = 4 if anchor is DOCUMENT_LETTERS else 1  # slanted letters lean over their neighbours
        for item in sample.boxes:
            left, top, right, bottom = (round(number) for number in item.box)
            assert dark[top:bottom, left:right].any(), item
            inside[top - edge : bottom + edge, max(left - edge, 0) : right + edge] = True
        assert not (dark & ~inside).any()


def test_documents_are_read_in_order():
    sample, letters = DOCUMENTS.sample(0, 3), DOCUMENT_LETTERS.sample(0, 3)
    assert sample.answer.split() == [item.text for item in sample.boxes]
    assert all(letters.answer[item.start] == item.text for item in letters.boxes)
    lines = [line.split() for line in sample.answer.split("\n")]
    tops = [item.box[1] for item in sample.boxes]
    starts = np.cumsum([0, *map(len, lines)])[:-1]
    assert [tops[start] for start in starts] == sorted(tops[start] for start in starts)
    assert DOCUMENTS.sample(0, 3).image.tobytes() == sample.image.tobytes()
    assert DOCUMENTS.sample(1, 3).answer != sample.answer != DOCUMENTS.sample(0, 4).answer


def test_bad_boxes_are_sorted_out_and_counted():
    boxes = [
        TextBox("a", (0, 0, 10, 10)),
        TextBox(" ", (0, 0, 10, 10)),
        TextBox("b", (5, 0, 5, 10)),
        TextBox("c", (-1, 0, 5, 10)),
        TextBox("d", (0, 0, 21, 10)),
        TextBox("e", (0, 9, 20, 8)),
    ]
    good, bad = check_boxes(boxes, 20, 10)
    assert [item.text for item in good] == ["a"]
    assert bad == {"empty text": 1, "empty box": 2, "outside the image": 2}


def test_unknown_anchor():
    names = "document-letters, documents, page-text, page-values, pages, coco, ctw, ctw1500, mlt, synthdog"
    with pytest.raises(ConfigError, match=f"one of {names}$"):
        anchor_named("page")
    with pytest.raises(ConfigError, match=r"data='x'.*makes its own images"):
        anchor_named("pages", "x")
