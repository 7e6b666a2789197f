"""Documents of the stand-in benchmarks: rendered pages asked about in the columns of the seven data sets."""

import io

import numpy as np

from sparsemm_eval.pages.drawing.layout import PAGE_SIZES
from sparsemm_eval.pages.drawing.render import make_page
from sparsemm_eval.pages.prompts import CHOICES, VALUE_QUESTION, made_up_values

# Wordings that the tiny readers know from training, post-prompts included; the benchmarks' tasks add those.
# TextVQA's task puts a question into lower case but for its first letter, so it must not hold a key.
_QUESTION = "What is the value of {key}?"
_READ = "What text is shown in the picture?"
_OCR_READ = "What is written in the image?"
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


def docvqa(count, seed):
    """DocVQA: value questions.

    Parameters
    ----------
    count : int
        Number of documents.
    seed : int

    Yields
    ------
    dict
        Columns of the data set; `image` as PNG bytes.
    """
    for index, page in _pages(count, seed):
        entry = _entry(page, index)
        yield {
            "questionId": str(index),
            "question": VALUE_QUESTION.format(key=entry.key),
            "question_types": ["form"],
            "image": _png(page, f"docvqa-{index}"),
            "docId": index,
            "ucsf_document_id": f"page{index}",
            "ucsf_document_page_no": "1",
            "answers": [entry.value],
            "data_split": "val",
        }


def ocrbench(count, seed):
    """OCRBench: short pages to read and value questions, all ten question types in turn; see `docvqa`."""
    whole, short = _pages(count, seed), _pages(count, seed, short=True)
    for (index, page), (_, short_page) in zip(whole, short, strict=True):
        kind = _OCR_TYPES[index % len(_OCR_TYPES)]
        entry = _entry(page, index)
        asks_value = kind in _OCR_VALUE_TYPES
        shown = page if asks_value else short_page
        yield {
            # Upstream compares answers of this one data set without blanks.
            "dataset": "HME100k" if kind == _OCR_TYPES[-1] else "pages",
            "question": VALUE_QUESTION.format(key=entry.key) if asks_value else _OCR_READ,
            "question_type": kind,
            "answer": [entry.value if asks_value else shown.text()],
            "image": _png(shown, f"ocrbench-{index}"),
        }


def textvqa(count, seed):
    """TextVQA: short pages to read, answered alike by ten annotators; see `docvqa`."""
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


def chartqa(count, seed):
    """ChartQA: value questions, human and augmented ones in turn; see `docvqa`."""
    for index, page in _pages(count, seed):
        entry = _entry(page, index)
        yield {
            "type": "augmented_test" if index % 2 else "human_test",
            "question": _QUESTION.format(key=entry.key),
            "answer": entry.value,
            "image": _png(page, f"chartqa-{index}"),
        }


def textcaps(count, seed):
    """TextCaps: short pages whose caption is their text; see `docvqa`."""
    for index, page in _pages(count, seed, short=True):
        yield {
            "question_id": str(index),
            "image_id": f"page{index}",
            "image": _png(page, f"textcaps-{index}"),
            "caption_id": [index],
            "caption_str": [page.text()],
            "set_name": "val",
        }


def mmbench(count, seed):
    """MMBench: which of four values is written on the short page; see `docvqa`."""
    for index, page in _pages(count, seed, short=True):
        value = _entry(page, index).value
        rng = np.random.default_rng((seed, index))
        shown = sorted([value, *made_up_values(value, rng)])
        yield {
            "index": index,
            "question": _OCR_READ,
            "hint": None,
            "answer": CHOICES[shown.index(value)],
            **dict(zip(CHOICES, shown, strict=True)),
            "category": "ocr",
            "image": _png(page, f"mmbench-{index}"),
            "source": "pages",
            "L2-category": "finegrained_perception (instance-level)",
            "comment": None,
            "split": "dev",
        }


def vqav2(count, seed):
    """VQAv2: value questions answered alike by ten annotators; see `docvqa`."""
    for index, page in _pages(count, seed):
        entry = _entry(page, index)
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


def _pages(count, seed, *, short=False):
    """Numbered held-out pages; short ones have little text."""
    sizes = _SMALL_SIZES if short else PAGE_SIZES
    name = 0
    for index in range(count):
        while True:
            page = make_page("heldout", seed, name, sizes[index % len(sizes)])
            name += 1
            if not (short and len(page.text()) > _SHORT_TEXT):
                break
        yield index, page


def _entry(page, index):
    # The stride is coprime to small counts, so that answers lie anywhere on the page.
    return page.entries[index * 7919 % len(page.entries)]


def _png(page, name):
    buffer = io.BytesIO()
    page.image.convert("L").save(buffer, format="PNG", optimize=True)
    return {"bytes": buffer.getvalue(), "path": f"{name}.png"}
