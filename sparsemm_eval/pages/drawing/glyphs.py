"""Glyph bank: every character drawn once per font size and shift, so that a page is a table look-up.

Drawing text with Pillow costs milliseconds per page; indexing this bank costs a fraction of one, and
training needs tens of thousands of pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sparsemm_eval.errors import ConfigError

CELL = 16
FONT_SIZES = (13, 14, 15)
SHIFTS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
# I, O, l and o look like digits or like each other at this size; a reader could only guess them.
CAPITALS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
DIGITS = "0123456789"
LOWERCASE = "abcdefghijkmnpqrstuvwxyz"
CHARACTERS = " " + DIGITS + CAPITALS + LOWERCASE


@dataclass(frozen=True)
class GlyphBank:
    """Coverage masks and ink boxes of all characters a page may show.

    Attributes
    ----------
    coverage : uint8 array, [font sizes, shifts, characters, CELL, CELL]
        0 is background, 255 is ink.
    ink : int16 array, [font sizes, shifts, characters, 4]
        Tight box of the ink inside the cell as (left, top, right, bottom) in pixels, right and bottom
        exclusive; all zero for the blank.
    """

    coverage: np.ndarray
    ink: np.ndarray


def character_codes(text: str) -> np.ndarray:
    """Indices of the characters of a text into `CHARACTERS`, int64 [len(text)].

    Raises
    ------
    ConfigError
        If the text holds a character that pages cannot show.
    """
    if not set(text) <= set(CHARACTERS):
        raise ConfigError("text", text, f"only characters that pages can show, {CHARACTERS!r}")
    return np.array([CHARACTERS.index(character) for character in text], dtype=np.int64)


def _draw(character: str, font_size: int) -> np.ndarray:
    """Draw one character on a canvas of three cells, baseline and centre fixed; uint8 [3 CELL, 3 CELL]."""
    canvas = Image.new("L", (3 * CELL, 3 * CELL), 0)
    baseline = (3 * CELL // 2, CELL + 12)
    font = ImageFont.load_default(font_size)
    ImageDraw.Draw(canvas).text(baseline, character, fill=255, font=font, anchor="ms")
    return np.asarray(canvas)


def _place(drawing: np.ndarray, shift: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Cut the cell out of a drawing, moved by `shift` but never so far that ink is cut off."""
    rows, columns = np.flatnonzero(drawing.any(1)), np.flatnonzero(drawing.any(0))
    if not len(rows):
        return np.zeros((CELL, CELL), np.uint8), (0, 0, 0, 0)
    top = int(np.clip(CELL - shift[0], rows[-1] + 1 - CELL, rows[0]))
    left = int(np.clip(CELL - shift[1], columns[-1] + 1 - CELL, columns[0]))
    box = (columns[0] - left, rows[0] - top, columns[-1] + 1 - left, rows[-1] + 1 - top)
    return drawing[top : top + CELL, left : left + CELL], box


@lru_cache(maxsize=1)
def glyph_bank() -> GlyphBank:
    """Draw all glyphs, in about 20 ms and once per process; the arrays are shared and read-only."""
    shape = (len(FONT_SIZES), len(SHIFTS), len(CHARACTERS))
    coverage = np.zeros((*shape, CELL, CELL), np.uint8)
    ink = np.zeros((*shape, 4), np.int16)
    for f, font_size in enumerate(FONT_SIZES):
        for c, character in enumerate(CHARACTERS):
            drawing = _draw(character, font_size)
            for s, shift in enumerate(SHIFTS):
                coverage[f, s, c], ink[f, s, c] = _place(drawing, shift)
            if ink[f, :, c].min() < 0 or ink[f, :, c].max() > CELL:
                raise RuntimeError(
                    f"glyph {character!r} at font size {font_size} does not fit into {CELL} pixels; "
                    "install a Pillow with FreeType (its own default font is needed)"
                )
    coverage.setflags(write=False)
    ink.setflags(write=False)
    return GlyphBank(coverage, ink)
