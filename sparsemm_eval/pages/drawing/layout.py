"""Where the text of a page goes: entries of key and value in rows, decided by a random generator."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from sparsemm_eval.checks import Count, checked, whole
from sparsemm_eval.pages.drawing.glyphs import CAPITALS, CELL, DIGITS, LOWERCASE

# Multiples of 8 cells (128 pixels), one LLaVA tile, so that no reader sees a page rescaled.
PAGE_SIZES = ((8, 16), (8, 24), (16, 16), (16, 24))
# Pages to read whole: on the largest, with 16 lines of two entries, readers lose their place now and then.
READING_SIZES = PAGE_SIZES[:3]
VALUE_LENGTHS = (6, 10)
KEY_LENGTH = 2
SPLITS = ("train", "heldout")
_HELDOUT_SHARE = 8
_Columns = whole(KEY_LENGTH + 1 + max(VALUE_LENGTHS))
_KEYS = tuple(first + second for first in CAPITALS for second in CAPITALS)


@dataclass(frozen=True)
class Entry:
    """A key and its value on a page; `row` and `column` are the cell of the key's first character."""

    key: str
    value: str
    row: int
    column: int

    @property
    def text(self) -> str:
        """The entry as printed: key, blank, value."""
        return f"{self.key} {self.value}"

    @property
    def value_cells(self) -> tuple[tuple[int, int], ...]:
        """Cells (row, column) of the value's characters, in order."""
        start = self.column + KEY_LENGTH + 1
        return tuple((self.row, start + i) for i in range(len(self.value)))

    @property
    def value_area(self) -> tuple[int, int, int, int]:
        """The value's cells as one box of pixels: left, top, right, bottom; right and bottom exclusive."""
        return _area(self.row, self.column + KEY_LENGTH + 1, self.value)

    @property
    def key_area(self) -> tuple[int, int, int, int]:
        """The key's cells, as `value_area`."""
        return _area(self.row, self.column, self.key)


def _area(row: int, column: int, text: str) -> tuple[int, int, int, int]:
    return column * CELL, row * CELL, (column + len(text)) * CELL, (row + 1) * CELL


@dataclass(frozen=True)
class Layout:
    """The text of a page without its looks: its size in cells, and entries in reading order, keys unique."""

    rows: int
    columns: int
    entries: tuple[Entry, ...]

    @property
    def grid(self) -> tuple[str, ...]:
        """Rows of the page as strings of equal length, blanks where nothing is printed."""
        lines = [[" "] * self.columns for _ in range(self.rows)]
        for entry in self.entries:
            lines[entry.row][entry.column : entry.column + len(entry.text)] = entry.text
        return tuple("".join(line) for line in lines)

    def text(self) -> str:
        """Canonical transcription: printed rows only, one blank between the entries of a row."""
        return "\n".join(" ".join(line.split()) for line in self.grid if line.strip())

    def entry_asked_for(self, index: int) -> Entry:
        """The entry that question number `index` of a series, one question per page, asks for."""
        # The stride is coprime to small counts, so that answers lie anywhere on the page.
        return self.entries[index * 7919 % len(self.entries)]


def _value(rng: np.random.Generator, length: int, alphabet: str) -> str:
    return "".join(alphabet[i] for i in rng.integers(len(alphabet), size=length))


def draw_layout(rng: np.random.Generator, rows: int, columns: int) -> Layout:
    """Draw the text of a page of `rows` x `columns` cells.

    Raises
    ------
    ConfigError
        If the page is too small for an entry.
    """
    checked(Count, "rows", rows)
    checked(_Columns, "columns", columns)
    shortest, longest = VALUE_LENGTHS
    share = rng.uniform(0.35, 1.0)
    printed = np.flatnonzero(rng.random(rows) < share)
    if not len(printed):
        printed = rng.integers(rows, size=1)
    two_columns = 2 * (KEY_LENGTH + 1 + shortest) + 1 <= columns and rng.random() < 0.5
    alphabet = DIGITS if rng.random() < 0.6 else DIGITS + LOWERCASE
    keys = iter([_KEYS[i] for i in rng.permutation(len(_KEYS))[: 2 * len(printed)]])
    entries = []
    for row in printed.tolist():
        count = 2 if two_columns and rng.random() < 0.8 else 1
        room = (columns - (count - 1)) // count - KEY_LENGTH - 1
        lengths = rng.integers(shortest, min(longest, room) + 1, size=count)
        free = columns - (count - 1) - int(lengths.sum()) - count * (KEY_LENGTH + 1)
        # Free cells are dealt out before each entry; what is left stays at the end of the row.
        column = 0
        for length in lengths.tolist():
            indent = int(rng.integers(free + 1))
            free -= indent
            column += indent
            entries.append(Entry(next(keys), _value(rng, length, alphabet), row, column))
            column += KEY_LENGTH + 1 + length + 1
    return Layout(rows, columns, tuple(entries))


def split_of(layout: Layout) -> str:
    """Split of a layout, decided by its text alone: "heldout" for one in eight, else "train"."""
    return "heldout" if zlib.crc32(layout.text().encode()) % _HELDOUT_SHARE == 0 else "train"
