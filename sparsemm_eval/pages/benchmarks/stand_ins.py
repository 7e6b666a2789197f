"""Stand-ins for the seven benchmarks: rendered pages asked about in the columns of the seven data sets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsemm_eval.pages.drawing.layout import PAGE_SIZES
from sparsemm_eval.pages.drawing.render import Page, make_page
from sparsemm_eval.pages.readers import questions

DEFAULT_COUNT = 24
# Far from the seeds of the page tasks, whose pages come from the same split.
DEFAULT_SEED = 700

Row = dict[str, Any]

# Wordings that the tiny readers know from training, post-prompts included; the benchmarks' tasks add those.
_QUESTION = questions.OTHER_VALUE_QUESTIONS[0]
# TextVQA's task puts a question into lower case but for its first letter, so it must not hold a key.
_READ = questions.OTHER_READ_QUESTIONS[2]
_OCR_READ = questions.OTHER_READ_QUESTIONS[0]
# Captions are cut after 64 tokens, one of which ends the answer.
_SHORT_TEXT = 60
_SMALL_SIZES = PAGE_SIZES[:2]
_ANNOTATORS = 10

_OCR_TYPES = (
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
    "Scene Text-centric VQA",
    "Doc-oriented VQA",
    "Key Information Extraction",
    "Handwritten Mathematical Expression Recognition",
)
_OCR_VALUE_TYPES = _OCR_TYPES[6:9]


def docvqa(count: int, seed: int) -> Iterator[Row]:
    """DocVQA: value questions."""
    for index, page in _pages(count, seed):
        entry = page.entry_asked_for(index)
        yield {
            "questionId": str(index),
            "question": questions.VALUE_QUESTION.format(key=entry.key),
            "question_types": ["form"],
            "image": _png(page, f"docvqa-{index}"),
            "docId": index,
            "ucsf_document_id": f"page{index}",
            "ucsf_document_page_no": "1",
            "answers": [entry.value],
            "data_split": "val",
        }


def ocrbench(count: int, seed: int) -> Iterator[Row]:
    """OCRBench: short pages to read and value questions, all ten question types in turn."""
    whole, short = _pages(count, seed), _pages(count, seed, short=True)
    for (index, page), (_, short_page) in zip(whole, short, strict=True):
        kind = _OCR_TYPES[index % len(_OCR_TYPES)]
        entry = page.entry_asked_for(index)
        asks_value = kind in _OCR_VALUE_TYPES
        shown = page if asks_value else short_page
        yield {
            # Upstream compares answers of this one data set without blanks.
            "dataset": "HME100k" if kind == _OCR_TYPES[-1] else "pages",
            "question": questions.VALUE_QUESTION.format(key=entry.key) if asks_value else _OCR_READ,
            "question_type": kind,
            "answer": [entry.value if asks_value else shown.text()],
            "image": _png(shown, f"ocrbench-{index}"),
        }


def textvqa(count: int, seed: int) -> Iterator[Row]:
    """TextVQA: short pages to read, answered alike by ten annotators."""
    for index, page in _pages(count, seed, short=True):
        yield {
            "image_id": f"page{index}",
            "question_id": index,
            "question": _READ,
            "image": _png(page, f"textvqa-{index}"),
            "image_width": page.image.width,
            "image_height": page.image.height,
            "answers": [page.text()] * _ANNOTATORS,
            "ocr_tokens": page.text().split(),
        }


def chartqa(count: int, seed: int) -> Iterator[Row]:
    """ChartQA: value questions, human and augmented ones in turn."""
    for index, page in _pages(count, seed):
        entry = page.entry_asked_for(index)
        yield {
            "type": "augmented_test" if index % 2 else "human_test",
            "question": _QUESTION.format(key=entry.key),
            "answer": entry.value,
            "image": _png(page, f"chartqa-{index}"),
        }


def textcaps(count: int, seed: int) -> Iterator[Row]:
    """TextCaps: short pages whose caption is their text."""
    for index, page in _pages(count, seed, short=True):
        yield {
            "question_id": str(index),
            "image_id": f"page{index}",
            "image": _png(page, f"textcaps-{index}"),
            "caption_id": [index],
            "caption_str": [page.text()],
            "set_name": "val",
        }


def mmbench(count: int, seed: int) -> Iterator[Row]:
    """MMBench: which of four values is written on the short page."""
    for index, page in _pages(count, seed, short=True):
        value = page.entry_asked_for(index).value
        shown = questions.offered_values(value, np.random.default_rng((seed, index)))
        yield {
            "index": index,
            "question": _OCR_READ,
            "hint": None,
            "answer": questions.CHOICES[shown.index(value)],
            **dict(zip(questions.CHOICES, shown, strict=True)),
            "category": "ocr",
            "image": _png(page, f"mmbench-{index}"),
            "source": "pages",
            "L2-category": "finegrained_perception (instance-level)",
            "comment": None,
            "split": "dev",
        }


def vqav2(count: int, seed: int) -> Iterator[Row]:
    """VQAv2: value questions answered alike by ten annotators."""
    for index, page in _pages(count, seed):
        entry = page.entry_asked_for(index)
        # Upstream leaves out answers equal to the one it looks at, so that the number tells annotators apart.
        answers = [
            {"answer": entry.value, "answer_confidence": "yes", "answer_id": number + 1}
            for number in range(_ANNOTATORS)
        ]
        yield {
            "question_type": "what is the",
            "multiple_choice_answer": entry.value,
            "answers": answers,
            "image_id": index,
            "answer_type": "other",
            "question_id": index,
            "question": _QUESTION.format(key=entry.key),
            "image": _png(page, f"vqav2-{index}"),
        }


def _pages(count: int, seed: int, *, short: bool = False) -> Iterator[tuple[int, Page]]:
    """Numbered held-out pages; short ones have little text."""
    sizes = _SMALL_SIZES if short else PAGE_SIZES
    names = itertools.count()
    for index in range(count):
        drawn = (make_page("heldout", seed, name, sizes[index % len(sizes)]) for name in names)
        yield index, next(page for page in drawn if not short or len(page.text()) <= _SHORT_TEXT)


def _png(page: Page, name: str) -> Row:
    return {"bytes": page.png(), "path": f"{name}.png"}


@dataclass(frozen=True)
class StandIn:
    """One data set: where upstream's tasks look for it, and what its rows are.

    Attributes
    ----------
    repository : str
        Name on the hub, and folder below the working directory.
    rows : callable
        Number of documents and seed to rows: dicts of the data set's columns, images as PNG bytes.
    short_numbers : tuple of str
        Columns of 32-bit numbers; all others have 64 bits.
    """

    repository: str
    config: str
    split: str
    tasks: tuple[str, ...]
    rows: Callable[[int, int], Iterator[Row]]
    short_numbers: tuple[str, ...] = ()


_TEXTVQA_NUMBERS = ("question_id", "image_width", "image_height")
_MMBENCH_TASKS = ("mmbench_en_dev", "mmbench_en_dev_static")
STAND_INS = (
    StandIn("lmms-lab-encoder/DocVQA", "DocVQA", "validation", ("docvqa_val",), docvqa),
    StandIn("echo840/OCRBench", "default", "test", ("ocrbench",), ocrbench),
    StandIn("lmms-lab-encoder/textvqa", "default", "validation", ("textvqa_val",), textvqa, _TEXTVQA_NUMBERS),
    StandIn("lmms-lab-encoder/ChartQA", "default", "test", ("chartqa",), chartqa),
    StandIn("lmms-lab-encoder/TextCaps", "default", "val", ("textcaps_val",), textcaps),
    StandIn("lmms-lab-encoder/MMBench", "en", "dev", _MMBENCH_TASKS, mmbench),
    StandIn("lmms-lab-encoder/VQAv2", "default", "validation", ("vqav2_val",), vqav2),
)
