"""How a reader is trained, as data: the stages of a recipe, and those that recipes share."""

from __future__ import annotations

from dataclasses import dataclass

from sparsemm_eval.pages.drawing.layout import LETTERS


@dataclass(frozen=True)
class Stage:
    """A part of the training with its own optimizer.

    Attributes
    ----------
    source : {"text", "cells", "image"}
        What the language model reads: character embeddings; nothing (the vision part is fitted to the
        embeddings alone); image features.
    parts : tuple of str
        Parameters that learn, of "text" and "vision".
    sizes : tuple of (rows, columns, batch size, weight)
        Pages of a step, drawn by weight.
    steps : int
        At most this many steps.
    rate : float
        Peak learning rate.
    until : float
        Stop early when the running accuracies of both tasks pass this; above 1 means never.
    decay : bool
        Lower the rate linearly to a fiftieth, else keep it after the warm-up.
    variety : float
        Probability of unusual wordings of the questions.
    choices : float
        Probability of a request to read the page being multiple-choice.
    hint : bool
        Ask for a value's first character at the end of its question too.
    recall : float
        Probability of rows that read the page listing its entries in random order instead.
    prose : float
        Probability of pages of English words.
    letters : float
        Probability of letters in the values of other pages.
    spelled : float
        Probability of an answer's token of several characters being cut into tokens of one, so that a reader
        unsure of the whole spells it.
    values : float
        Share of rows that look values up; the others read pages.
    pages : int
        Pages of a row, one after the other; more than one for LLaVA-NeXT only.
    as_line : bool
        Count image features like text, one after the other, also where the model has rows and columns.
    """

    name: str
    source: str
    parts: tuple[str, ...]
    sizes: tuple[tuple[int, int, int, float], ...]
    steps: int
    rate: float = 3e-3
    until: float = 2.0
    decay: bool = False
    variety: float = 0.0
    choices: float = 0.0
    hint: bool = False
    recall: float = 0.0
    as_line: bool = False
    prose: float = 0.0
    letters: float = LETTERS
    spelled: float = 0.0
    values: float = 0.375
    pages: int = 1

    def factor(self, step: int) -> float:
        """Share of the peak learning rate at a step (0-based)."""
        warmup = min(1.0, (step + 1) / 20)
        return warmup * max(0.02, 1 - step / self.steps) if self.decay else warmup


# Reading is learned on pages of four rows first: the key after a line break stays at chance for long when
# there are many to choose from.
TINY = ((4, 16, 32, 1.0),)
SHORT = ((8, 16, 32, 1.0),)
MIXED = ((8, 16, 32, 0.15), (8, 24, 24, 0.2), (16, 16, 16, 0.4), (16, 24, 12, 0.25))
# Rows with two entries are the hardest to read in order.
WIDE = ((8, 16, 32, 0.1), (8, 24, 24, 0.3), (16, 16, 16, 0.2), (16, 24, 12, 0.4))
# Where small pages lag behind.
EVEN = ((8, 16, 32, 0.3), (8, 24, 24, 0.3), (16, 16, 16, 0.25), (16, 24, 12, 0.15))
BOTH = ("text", "vision")
FOUNDATION = (
    Stage("text-tiny", "text", ("text",), TINY, steps=800, until=0.9),
    Stage("text-short", "text", ("text",), SHORT, steps=200, until=0.95),
    Stage("text-mixed", "text", ("text",), MIXED, steps=250, rate=2e-3, until=0.96),
    Stage("align", "cells", ("vision",), MIXED, steps=120),
    Stage("joint", "image", BOTH, MIXED, steps=350, rate=2e-3, decay=True, variety=0.2),
)
# Readers with grouped KV heads meet multiple choice earlier and so need fewer stages.
GROUPED = (
    *FOUNDATION,
    Stage("polish", "image", BOTH, WIDE, steps=240, rate=2e-3, decay=True, variety=0.2, choices=0.1),
    Stage("settle", "image", BOTH, MIXED, steps=220, rate=1.5e-3, decay=True, variety=0.2, choices=0.1),
)
