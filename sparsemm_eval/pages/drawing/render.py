"""From a layout to pixels: random font size, jitter and grey levels, the box of every character known."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from sparsemm_eval.pages.drawing.glyphs import (
    CELL,
    CHARACTERS,
    FONT_SIZES,
    SHIFTS,
    character_codes,
    glyph_bank,
)
from sparsemm_eval.pages.drawing.layout import PAGE_SIZES, SPLITS, Layout, draw_split_layout, pixel_size


@dataclass(frozen=True)
class Page:
    """A rendered page.

    Attributes
    ----------
    layout : Layout
    pixels : uint8 array, [rows * CELL, columns * CELL]
        Grey levels, read-only.
    boxes : int16 array, [rows, columns, 4]
        Tight ink box of the character in each cell as (left, top, right, bottom) in page pixels, right and
        bottom exclusive; -1 for blanks. Read-only.
    """

    layout: Layout
    pixels: np.ndarray
    boxes: np.ndarray

    @property
    def image(self):
        """The page as an RGB `PIL.Image`."""
        return Image.fromarray(self.pixels).convert("RGB")

    @property
    def rows(self):
        """Height in cells."""
        return self.layout.rows

    @property
    def columns(self):
        """Width in cells."""
        return self.layout.columns

    @property
    def entries(self):
        """Entries in reading order."""
        return self.layout.entries

    @property
    def grid(self):
        """Rows of the page as strings of `columns` characters."""
        return self.layout.grid()

    def text(self):
        """Canonical transcription, the target of the page-reading task."""
        return self.layout.text()

    def box(self, row, column):
        """Ink box of one character as four ints, or None for a blank."""
        box = tuple(int(edge) for edge in self.boxes[row, column])
        return None if box[0] < 0 else box

    def value_boxes(self, entry):
        """Ink boxes of an entry's value, one per character."""
        return tuple(self.box(row, column) for row, column in entry.value_cells)


def render(layout, rng):
    """Draw a layout.

    Parameters
    ----------
    layout : Layout
    rng : numpy.random.Generator
        Decides font size (per page), jitter of at most one pixel (per character) and grey levels (per page).

    Returns
    -------
    Page
    """
    rows, columns = layout.rows, layout.columns
    bank = glyph_bank()
    codes = character_codes("".join(layout.grid())).reshape(rows, columns)
    font = int(rng.integers(len(FONT_SIZES)))
    shifts = rng.integers(len(SHIFTS), size=(rows, columns))
    paper, ink = rng.integers(170, 256), rng.integers(0, 91)
    height, width = pixel_size(rows, columns)
    coverage = bank.coverage[font, shifts, codes].transpose(0, 2, 1, 3).reshape(height, width)
    levels = np.rint(paper + (float(ink) - float(paper)) * np.arange(256) / 255).astype(np.uint8)
    pixels = levels[coverage]
    corner = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1) * CELL
    boxes = (bank.ink[font, shifts, codes] + np.tile(corner, 2)).astype(np.int16)
    boxes[codes == CHARACTERS.index(" ")] = -1
    pixels.setflags(write=False)
    boxes.setflags(write=False)
    return Page(layout, pixels, boxes)


def make_page(split, seed, index, size=None):
    """The page with a given name; the same name gives the same pixels.

    Parameters
    ----------
    split : {"train", "heldout"}
        The splits share no page: a page's text alone decides where it belongs.
    seed, index : int
        Non-negative names inside the split.
    size : (int, int), optional
        Rows and columns in cells; by default one of `PAGE_SIZES`, drawn.

    Returns
    -------
    Page

    Raises
    ------
    ValueError
        If `split` is unknown or the page is too small for an entry.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; use one of {SPLITS}")
    rng = np.random.default_rng((SPLITS.index(split), seed, index))
    rows, columns = PAGE_SIZES[int(rng.integers(len(PAGE_SIZES)))] if size is None else size
    return render(draw_split_layout(rng, rows, columns, split), rng)
