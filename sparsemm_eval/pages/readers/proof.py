"""How well a reader reads: free-running greedy generation on held-out pages with the full cache."""

from dataclasses import dataclass

import torch

from sparsemm_eval.pages.drawing.layout import PAGE_SIZES, READING_SIZES
from sparsemm_eval.pages.drawing.render import make_page
from sparsemm_eval.pages.prompts import READ_QUESTION, VALUE_QUESTION
from sparsemm_eval.tasks.pages.metrics import character_accuracy, exact_match


@dataclass(frozen=True)
class Proof:
    """Held-out scores of a reader.

    Attributes
    ----------
    qa : float
        Exact match over `qa_count` questions, 0..1.
    ocr : float
        Mean over `ocr_count` pages of 1 - edit distance / length, floored at 0.
    qa_count, ocr_count : int
    """

    qa: float
    ocr: float
    qa_count: int
    ocr_count: int


@torch.inference_mode()
def answer(model, processor, images, questions, max_new_tokens):
    """Ask one question about each image, in one batch.

    Parameters
    ----------
    model, processor
        A reader as the transformers Auto classes load it.
    images : list of PIL.Image
        May differ in size; the processor pads on the left.
    questions : list of str
    max_new_tokens : int

    Returns
    -------
    list of str
    """
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for question in questions
    ]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt").to(
        model.device, model.dtype
    )
    output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    return processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def prove(model, processor, qa_count=100, ocr_count=24, seed=1, batch_size=16):
    """Score a reader on held-out pages, one question per page, with plain `generate`.

    Parameters
    ----------
    model, processor
        A reader as the transformers Auto classes load it.
    qa_count, ocr_count : int
        Number of value questions and of pages to read; sizes take turns.
    seed : int
        Names the pages inside the held-out split.
    batch_size : int
        Rows per `generate` call; batches mix sizes.

    Returns
    -------
    Proof
    """
    looked_up = _pages(seed, range(qa_count), PAGE_SIZES)
    read = _pages(seed, range(qa_count, qa_count + ocr_count), READING_SIZES)
    pages = looked_up + read
    entries = [page.entries[i % len(page.entries)] for i, page in enumerate(looked_up)]
    questions = [VALUE_QUESTION.format(key=entry.key) for entry in entries]
    truths = [entry.value for entry in entries] + [page.text() for page in read]
    questions += [READ_QUESTION] * len(read)
    longest = [16] * qa_count + [2 + max(map(len, truths[qa_count:]), default=0)] * ocr_count
    scores = []
    for task in (range(qa_count), range(qa_count, qa_count + ocr_count)):
        for start in range(task.start, task.stop, batch_size):
            rows = range(start, min(start + batch_size, task.stop))
            images = [pages[i].image for i in rows]
            replies = answer(model, processor, images, [questions[i] for i in rows], longest[start])
            scores += list(zip(replies, [truths[i] for i in rows], strict=True))
    exact = sum(exact_match(reply, truth) for reply, truth in scores[:qa_count])
    read_scores = [character_accuracy(reply, truth) for reply, truth in scores[qa_count:]]
    return Proof(exact / max(1, qa_count), sum(read_scores) / max(1, ocr_count), qa_count, ocr_count)


def _pages(seed, numbers, sizes):
    return [make_page("heldout", seed, i, sizes[i % len(sizes)]) for i in numbers]
