import io

import numpy as np
import pytest
from PIL import Image

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.pages.drawing.glyphs import CELL, CHARACTERS, character_codes, glyph_bank
from sparsemm_eval.pages.drawing.layout import (
    ALL_WORDS,
    PAGE_SIZES,
    VALUE_LENGTHS,
    Layout,
    draw_layout,
    split_of,
)
from sparsemm_eval.pages.drawing.render import make_page


@pytest.mark.parametrize("size", PAGE_SIZES)
def test_same_name_same_page(size):
    first, second = (make_page("train", 3, 5, size) for _ in range(2))
    assert first.grid == second.grid
    assert np.array_equal(first.pixels, second.pixels)
    assert np.array_equal(first.boxes, second.boxes)
    assert not np.array_equal(first.pixels, make_page("train", 3, 6, size).pixels)


@pytest.mark.parametrize("size", PAGE_SIZES)
def test_entries_are_on_the_page(size):
    for index in range(20):
        page = make_page("heldout", 0, index, size)
        keys = [entry.key for entry in page.entries]
        assert len(set(keys)) == len(keys)
        assert len(page.grid) == size[0]
        assert {len(line) for line in page.grid} == {size[1]}
        for entry in page.entries:
            assert VALUE_LENGTHS[0] <= len(entry.value) <= VALUE_LENGTHS[1]
            assert "".join(page.grid[row][column] for row, column in entry.value_cells) == entry.value
        assert page.text().split() == " ".join(entry.text for entry in page.entries).split()


@pytest.mark.parametrize("size", PAGE_SIZES)
def test_pages_of_prose_hold_words(size):
    keyed = lines = 0
    for index in range(20):
        page = make_page("heldout", 0, index, size, prose=True)
        assert split_of(page) == "heldout"
        assert len({entry.key for entry in page.keyed}) == len(page.keyed) > 0
        for entry in page.entries:
            assert "".join(page.grid[row][column] for row, column in entry.value_cells) == entry.value
            assert {word.removeprefix("The") for word in entry.value.split()} <= {*ALL_WORDS, "", "the"}
        assert page.text().split() == " ".join(entry.text for entry in page.entries).split()
        keyed += len(page.keyed)
        lines += len(page.entries) - len(page.keyed)
    assert min(keyed, lines) > 20


@pytest.mark.parametrize("prose", [False, True])
@pytest.mark.parametrize("size", PAGE_SIZES)
def test_boxes_hold_exactly_the_ink(size, prose):
    page = make_page("train", 1, 2, size, prose)
    paper = page.pixels.max()
    ink = page.pixels != paper
    covered = np.zeros_like(ink)
    for row in range(page.rows):
        for column in range(page.columns):
            box = page.box(row, column)
            assert (box is None) == (page.grid[row][column] == " ")
            if box is None:
                continue
            left, top, right, bottom = box
            assert column * CELL <= left < right <= (column + 1) * CELL
            assert row * CELL <= top < bottom <= (row + 1) * CELL
            inside = ink[top:bottom, left:right]
            assert inside.any()
            covered[top:bottom, left:right] = True
    assert not (ink & ~covered).any()


def test_pages_are_read_only_and_rgb():
    page = make_page("train", 0, 0)
    assert page.image.mode == "RGB"
    assert page.image.size == page.pixels.shape[::-1]
    with pytest.raises(ValueError, match="read-only"):
        page.pixels[0, 0] = 0


def test_splits_share_no_page():
    assert all(split_of(make_page("heldout", 0, i, (8, 16))) == "heldout" for i in range(20))
    assert all(split_of(make_page("train", 0, i, (8, 16))) == "train" for i in range(20))


def test_unusable_arguments_are_named():
    with pytest.raises(ConfigError, match=r"split='test'.*train, heldout"):
        make_page("test", 0, 0)
    with pytest.raises(ConfigError, match=r"columns=8.*>= 13"):
        draw_layout(np.random.default_rng(0), 16, 8)
    with pytest.raises(ConfigError, match="é"):
        character_codes("é")


def test_two_columns_occur_and_read_left_to_right():
    pages = [make_page("train", 0, i, (8, 24)) for i in range(30)]
    rows = [line.split() for page in pages for line in page.text().split("\n")]
    assert {len(row) for row in rows} == {2, 4}


def test_a_png_shows_the_page():
    page = make_page("train", 0, 3)
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(page.png())).convert("RGB")), np.asarray(page.image)
    )


def test_empty_layout_reads_empty():
    assert Layout(2, 16, ()).text() == ""


def test_glyphs_differ():
    coverage = glyph_bank().coverage
    for masks in coverage[:, 4]:
        assert len({mask.tobytes() for mask in masks}) == len(CHARACTERS)
