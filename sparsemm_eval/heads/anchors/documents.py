"""A built-in anchor like SynthDoG, without a download: documents of lines and paragraphs in TrueType fonts.

Words are drawn anew for every document, at sizes and places that follow no cell grid, on paper with a tint
and a grain. The fonts are the ones that matplotlib brings along.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sparsemm_eval.heads.anchors.record import Anchor, AnchorSample, TextBox
from sparsemm_eval.heads.anchors.stored import READ_REQUEST
from sparsemm_eval.model.image_tokens import Box

FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
)
SIZES = ((384, 256), (256, 384), (512, 384), (640, 480))  # width, height in pixels
FONT_SIZES = (13, 26)  # pixels, both included
SYLLABLES = tuple(a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "in"))


@dataclass(frozen=True)
class Word:
    """A printed word."""

    text: str
    box: Box  # around its ink
    letters: tuple[Box, ...]  # around the ink of each of its characters


@dataclass(frozen=True)
class Document:
    """An image and its printed lines of words, in reading order."""

    image: Image.Image
    lines: list[list[Word]]

    def text(self) -> str:
        """Words with blanks between, lines with line breaks."""
        return "\n".join(" ".join(word.text for word in line) for line in self.lines)

    def words(self) -> list[Word]:
        """The words of all lines."""
        return [word for line in self.lines for word in line]


def make_document(seed: int, index: int) -> Document:
    """Draw one document; the same arguments give the same one."""
    draw = np.random.default_rng((7, seed, index))
    width, height = SIZES[int(draw.integers(len(SIZES)))]
    paper = draw.integers(200, 256, 3)
    image = Image.fromarray(_grained(paper, width, height, draw))
    lines: list[list[Word]] = []
    top = int(draw.integers(6, 24))
    while True:
        name = FONTS[int(draw.integers(len(FONTS)))]
        font = _font(name, int(draw.integers(FONT_SIZES[0], FONT_SIZES[1] + 1)))
        ink = tuple(int(shade) for shade in draw.integers(0, 90, 3))
        left = int(draw.integers(6, max(7, width // 4)))
        spacing = float(draw.uniform(1.1, 1.5)) * sum(font.getmetrics())
        for _ in range(int(draw.integers(1, 5))):  # lines of a paragraph
            if top + spacing > height:
                return Document(image, lines)
            if words := _line(image, font, ink, left, top, draw):
                lines.append(words)
            top = round(top + spacing)
        top += int(draw.integers(2, 14))


def _line(
    image: Image.Image,
    font: ImageFont.FreeTypeFont,
    ink: tuple[int, ...],
    left: int,
    top: int,
    draw: np.random.Generator,
) -> list[Word]:
    """Print words until one does not fit before the right margin; the words that were printed."""
    found, x = [], float(left)
    for _ in range(int(draw.integers(1, 9))):
        text = _word(draw)
        if x + font.getlength(text) + 6 > image.width:
            break
        ImageDraw.Draw(image).text((x, top), text, fill=ink, font=font)
        letters = tuple(_ink(font, text, index, x, top) for index in range(len(text)))
        box = font.getbbox(text)
        found.append(Word(text, (x + box[0], top + box[1], x + box[2], top + box[3]), letters))
        x = round(x + font.getlength(text + " "))
    return found


def _ink(font: ImageFont.FreeTypeFont, text: str, index: int, x: float, y: float) -> Box:
    """Where one character of a printed word stands: as wide as its advance, as high as its ink."""
    start, end = font.getlength(text[:index]), font.getlength(text[: index + 1])
    _, top, _, bottom = font.getbbox(text[index])
    return x + start, y + top, x + end, y + bottom


def _word(draw: np.random.Generator) -> str:
    if draw.random() < 0.2:
        return "".join(string.digits[int(digit)] for digit in draw.integers(0, 10, int(draw.integers(2, 7))))
    text = "".join(SYLLABLES[int(i)] for i in draw.integers(0, len(SYLLABLES), int(draw.integers(1, 4))))
    kind = draw.random()
    return text.upper() if kind < 0.15 else text.capitalize() if kind < 0.4 else text


def _grained(paper: np.ndarray, width: int, height: int, draw: np.random.Generator) -> np.ndarray:
    grain = draw.normal(0, float(draw.uniform(0, 4)), (height, width, 1))
    return np.clip(paper + grain, 0, 255).astype(np.uint8)


@lru_cache(maxsize=256)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def document_sample(seed: int, index: int) -> AnchorSample:
    """A document and the request to read it; every word has a box."""
    document = make_document(seed, index)
    boxes = tuple(TextBox(word.text, word.box) for word in document.words())
    return AnchorSample(f"document-{index}", document.image, READ_REQUEST, document.text(), boxes)


def document_letters_sample(seed: int, index: int) -> AnchorSample:
    """A document and the request to read it; every character has a box."""
    document, boxes, start = make_document(seed, index), [], 0
    for word in document.words():
        for place, (character, box) in enumerate(zip(word.text, word.letters, strict=True)):
            boxes.append(TextBox(character, box, start + place))
        start += len(word.text) + 1
    return AnchorSample(f"letters-{index}", document.image, READ_REQUEST, document.text(), tuple(boxes))


DOCUMENTS = Anchor("documents", "unique", document_sample)
DOCUMENT_LETTERS = Anchor("document-letters", "aligned", document_letters_sample)
ANCHORS = (DOCUMENTS, DOCUMENT_LETTERS)
