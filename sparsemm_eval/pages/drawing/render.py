"""From a layout to pixels: random font size, jitter and grey levels, the box of every character known."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from sparsemm_eval.checks import checked, one_of
from sparsemm_eval.pages.drawing.glyphs import (
    CELL,
    CHARACTERS,
    FONT_SIZES,
    SHIFTS,
    character_codes,
    glyph_bank,
)
from sparsemm_eval.pages.drawing.layout import (
    LETTERS,
    PAGE_SIZES,
    SPLITS,
    Entry,
    Layout,
    draw_layout,
    draw_prose,
    split_of,
)

InkBox = tuple[int, int, int, int]


@dataclass(frozen=True)
class Page(Layout):
    """A rendered page: a layout with its looks.

    Attributes
    ----------
    pixels : uint8 array, [rows * CELL, columns * CELL]
        Grey levels, read-only.
    boxes : int16 array, [rows, columns, 4]
        Tight ink box of the character in each cell as (left, top, right, bottom) in page pixels, right and
        bottom exclusive; -1 for blanks. Read-only.
    """

    pixels: np.ndarray
    boxes: np.ndarray

    @property
    def image(self) -> Image.Image:
        """The page in RGB."""
        return Image.fromarray(self.pixels).convert("RGB")

    def png(self) -> bytes:
        """The page as a PNG file of one channel, which is smaller; who reads it converts to RGB."""
        buffer = io.BytesIO()
        Image.fromarray(self.pixels).save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()

    def box(self, row: int, column: int) -> InkBox | None:
        """Ink box of one character, or None for a blank."""
        left, top, right, bottom = self.boxes[row, column].tolist()
        return None if left < 0 else (left, top, right, bottom)

    def value_boxes(self, entry: Entry) -> tuple[InkBox | None, ...]:
        """Ink boxes of an entry's value, one per character."""
        return tuple(self.box(row, column) for row, column in entry.value_cells)


def render(layout: Layout, rng: np.random.Generator) -> Page:
    """Draw a layout in a font size and grey levels of its own, each character moved by a pixel at most."""
    rows, columns = layout.rows, layout.columns
    bank = glyph_bank()
    codes = character_codes("".join(layout.grid)).reshape(rows, columns)
    font = int(rng.integers(len(FONT_SIZES)))
    shifts = rng.integers(len(SHIFTS), size=(rows, columns))
    paper, ink = rng.integers(170, 256), rng.integers(0, 91)
    coverage = bank.coverage[font, shifts, codes].transpose(0, 2, 1, 3).reshape(rows * CELL, columns * CELL)
    levels = np.rint(paper + (float(ink) - float(paper)) * np.arange(256) / 255).astype(np.uint8)
    pixels = levels[coverage]
    corner = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1) * CELL
    boxes = (bank.ink[font, shifts, codes] + np.tile(corner, 2)).astype(np.int16)
    boxes[codes == CHARACTERS.index(" ")] = -1
    pixels.setflags(write=False)
    boxes.setflags(write=False)
    return Page(rows, columns, layout.entries, pixels, boxes)


def make_page(
    split: str,
    seed: int,
    index: int,
    size: tuple[int, int] | None = None,
    prose: bool = False,
    letters: float = LETTERS,
) -> Page:
    """The page with a given name, which gives the same pixels every time.

    Parameters
    ----------
    split : {"train", "heldout"}
        The splits share no page: a page's text alone decides where it belongs.
    seed, index : int
        Non-negative names inside the split.
    size : (int, int), optional
        Rows and columns in cells; by default one of `PAGE_SIZES`, drawn.

    prose : bool
        English words and sentences instead of keys with random values.
    letters : float
        Otherwise, the probability of letters in the values.

    Raises
    ------
    ConfigError
        If `split` is unknown or the page is too small for an entry.
    """
    checked(one_of(*SPLITS), "split", split)
    rng = np.random.default_rng((SPLITS.index(split), seed, index))
    rows, columns = PAGE_SIZES[int(rng.integers(len(PAGE_SIZES)))] if size is None else size
    draw = draw_prose if prose else partial(draw_layout, letters=letters)
    layout = draw(rng, rows, columns)
    while split_of(layout) != split:
        layout = draw(rng, rows, columns)
    return render(layout, rng)
