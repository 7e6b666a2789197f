"""The built-in anchors: rendered pages of the kind the embedded readers read, a box for every character.

A reader's tokens are single characters, and most characters stand on a page many times, so hardly a token
occurs in exactly one box. Pages therefore use the rule ``aligned``: the i-th character of the transcription
is the i-th character printed on the page, and a token counts where the answer agrees with the transcription.
"""

from __future__ import annotations

from sparsemm_eval.heads.anchors.record import Anchor, AnchorSample, TextBox
from sparsemm_eval.pages.drawing.render import Page, make_page
from sparsemm_eval.pages.readers.questions import READ_QUESTION, VALUE_QUESTION

# The tasks evaluate on held-out pages, and readers are trained on pages with small seeds. These are others.
SPLIT = "train"
SEED_BASE = 1_000_000


def page_reading_sample(seed: int, index: int, size: tuple[int, int] | None = None) -> AnchorSample:
    """A page and the request to read all of it; every printed character has a box."""
    page = make_page(SPLIT, SEED_BASE + seed, index, size)
    return AnchorSample(f"page-{index}", page.image, READ_QUESTION, page.text(), _reading_boxes(page))


def page_value_sample(seed: int, index: int) -> AnchorSample:
    """A page and the question for one value; the characters of the value have boxes."""
    page = make_page(SPLIT, SEED_BASE + seed, index)
    entry = page.entry_asked_for(index)
    boxes = tuple(
        TextBox(character, box, start)
        for start, (character, box) in enumerate(zip(entry.value, page.value_boxes(entry), strict=True))
    )
    question = VALUE_QUESTION.format(key=entry.key)
    return AnchorSample(f"value-{index}", page.image, question, entry.value, boxes)


def _reading_boxes(page: Page) -> tuple[TextBox, ...]:
    """The printed characters in the order of the transcription, which only leaves blanks and rows out."""
    printed = [
        (page.grid[row][column], page.box(row, column))
        for row in range(page.rows)
        for column in range(page.columns)
        if page.box(row, column) is not None
    ]
    places = [start for start, character in enumerate(page.text()) if not character.isspace()]
    pairs = zip(printed, places, strict=True)
    return tuple(TextBox(character, box, start) for (character, box), start in pairs)


def page_text_sample(seed: int, index: int) -> AnchorSample:
    """The text of a page in the prompt, no image, and the request to copy it: it finds heads that copy text.

    Any language model can be asked, so these scores need neither images nor a vision part.
    """
    page = make_page(SPLIT, SEED_BASE + seed, index)
    text = page.text()
    boxes = tuple(
        TextBox(character, (start, 0, start + 1, 1), start)
        for start, character in enumerate(text)
        if not character.isspace()
    )
    return AnchorSample(f"text-{index}", None, READ_QUESTION, text, boxes, shown=text)


PAGES = Anchor("pages", "aligned", page_reading_sample)
PAGE_VALUES = Anchor("page-values", "aligned", page_value_sample)
PAGE_TEXT = Anchor("page-text", "aligned", page_text_sample)
ANCHORS = (PAGES, PAGE_VALUES, PAGE_TEXT)
