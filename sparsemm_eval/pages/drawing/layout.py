"""Where the text of a page goes: entries of key and value in rows, decided by a random generator."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
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
LETTERS = 0.4  # share of pages whose values hold letters, not digits alone
SPLITS = ("train", "heldout")
_HELDOUT_SHARE = 8
_Columns = whole(KEY_LENGTH + 1 + max(VALUE_LENGTHS))
# Pages have no l and no o (see glyphs.py), so neither have these.
_NOUNS = """
bird bread brick bridge bus cat chair cherry church city cream crab deer desk dish engine
farm fence ferry fish frame garden giant hat heart hen ink jacket jam kitchen king knife ape map
market mitten nest net night paper peach pen picture queen radish raft train tree seat ship
shirt sheep singer sister spider stair star steam street sun tea teacher tent ticket tiger tram
user van wave wind winter witness writer yard zebra
"""
_ADJECTIVES = """
ancient big brave bright busy cheap dark deep dry empty fast fresh funny great green grey
happy heavy high huge kind new pretty quick quiet red rich safe sharp sick smart strange sweet
tiny tired warm weak wet white wide wise
"""
_VERBS = """
admires asks beats brings buys carries catches changes cuts draws drives enters feeds finds
greets guards hides hits hunts invites keeps kicks marks meets misses needs paints passes pushes
reads remembers saves sees sends shakes takes teaches tests turns visits wants washes watches
writes
"""
NOUNS, ADJECTIVES, VERBS = (tuple(words.split()) for words in (_NOUNS, _ADJECTIVES, _VERBS))
ALL_WORDS = (*NOUNS, *ADJECTIVES, *VERBS)
_KEYS = tuple(first + second for first in CAPITALS for second in CAPITALS)


@dataclass(frozen=True)
class Entry:
    """A key and its value on a page; `row` and `column` are the cell of its first character.

    A line of running text is an entry with an empty key.
    """

    key: str
    value: str
    row: int
    column: int

    @property
    def text(self) -> str:
        """The entry as printed: key, blank, value; the value alone where there is no key."""
        return f"{self.key} {self.value}" if self.key else self.value

    @property
    def _value_column(self) -> int:
        return self.column + len(self.text) - len(self.value)

    @property
    def value_cells(self) -> tuple[tuple[int, int], ...]:
        """Cells (row, column) of the value's characters, in order."""
        return tuple((self.row, self._value_column + i) for i in range(len(self.value)))

    @property
    def value_area(self) -> tuple[int, int, int, int]:
        """The value's cells as one box of pixels: left, top, right, bottom; right and bottom exclusive."""
        return _area(self.row, self._value_column, self.value)

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

    @property
    def keyed(self) -> tuple[Entry, ...]:
        """The entries that can be asked for."""
        return tuple(entry for entry in self.entries if entry.key)

    def text(self) -> str:
        """Canonical transcription: printed rows only, one blank between the entries of a row."""
        return "\n".join(" ".join(line.split()) for line in self.grid if line.strip())

    def entry_asked_for(self, index: int) -> Entry:
        """The entry that question number `index` of a series, one question per page, asks for."""
        # The stride is coprime to small counts, so that answers lie anywhere on the page.
        return self.entries[index * 7919 % len(self.entries)]


def keyed_once(layouts: Sequence[Layout]) -> list[Entry]:
    """The entries that can be asked for without naming the page: their key is on one page alone."""
    entries = [entry for layout in layouts for entry in layout.keyed]
    counts = Counter(entry.key for entry in entries)
    return [entry for entry in entries if counts[entry.key] == 1]


def _value(rng: np.random.Generator, length: int, alphabet: str) -> str:
    return "".join(alphabet[i] for i in rng.integers(len(alphabet), size=length))


def draw_layout(rng: np.random.Generator, rows: int, columns: int, letters: float = LETTERS) -> Layout:
    """Draw the text of a page of `rows` x `columns` cells, with letters in its values at a probability.

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
    alphabet = DIGITS if rng.random() < 1 - letters else DIGITS + LOWERCASE
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


def draw_prose(rng: np.random.Generator, rows: int, columns: int) -> Layout:
    """Draw a page of English words: lines of running text, and entries whose values are words.

    Raises
    ------
    ConfigError
        If the page is too small for an entry.
    """
    checked(Count, "rows", rows)
    checked(_Columns, "columns", columns)
    printed = np.flatnonzero(rng.random(rows) < rng.uniform(0.35, 1.0))
    if not len(printed):
        printed = rng.integers(rows, size=1)
    keyed = rng.random(len(printed)) < rng.uniform(0.2, 0.9)
    keyed[int(rng.integers(len(printed)))] = True
    keys = iter([_KEYS[i] for i in rng.permutation(len(_KEYS))[: len(printed)]])
    running = _sentences(rng)
    entries, carried = [], next(running)
    for row, is_keyed in zip(printed.tolist(), keyed.tolist(), strict=True):
        if is_keyed:
            room = columns - KEY_LENGTH - 1
            words = [word for word in rng.permutation(ALL_WORDS).tolist() if len(word) <= room]
            value = words[0]
            if rng.random() < 0.6 and len(f"{value} {words[1]}") <= room:
                value = f"{value} {words[1]}"
            key = next(keys)
        else:
            key, value = "", carried
            carried = next(running)
            while len(f"{value} {carried}") <= columns:
                value, carried = f"{value} {carried}", next(running)
        spare = columns - len(value) - (KEY_LENGTH + 1 if key else 0)
        entries.append(Entry(key, value, row, int(rng.integers(spare + 1))))
    return Layout(rows, columns, tuple(entries))


def _sentences(rng: np.random.Generator) -> Iterator[str]:
    """Words of one sentence after another."""
    while True:
        chosen = [_pick(rng, kind) for kind in (ADJECTIVES, NOUNS, VERBS, ADJECTIVES, NOUNS)]
        yield from ("The", *chosen[:3], "the", *chosen[3:])


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


def split_of(layout: Layout) -> str:
    """Split of a layout, decided by its text alone: "heldout" for one in eight, else "train"."""
    return "heldout" if zlib.crc32(layout.text().encode()) % _HELDOUT_SHARE == 0 else "train"
