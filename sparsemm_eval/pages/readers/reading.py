"""How well a reader reads: greedy answers about held-out pages, scored as the page tasks score them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from sparsemm_eval.model.images import rgb_image
from sparsemm_eval.pages.drawing.layout import PAGE_SIZES, READING_SIZES
from sparsemm_eval.pages.drawing.render import make_page
from sparsemm_eval.pages.readers.questions import READ_QUESTION, VALUE_QUESTION

MAX_NEW_TOKENS = {"pages_qa": 16, "pages_ocr": 448}  # as in the tasks' YAML


def documents(task: str, limit: int | None = None) -> list[dict[str, Any]]:
    """A page task's first documents, images decoded; all by default."""
    import datasets  # takes a second

    from sparsemm_eval.tasks import FOLDER

    path = str(FOLDER / "pages" / "data" / f"{task}.parquet")
    rows = datasets.load_dataset("parquet", data_files=path, split="train")
    return list(rows.select(range(min(limit or len(rows), len(rows)))))


@torch.inference_mode()
def replies(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Sequence[Mapping[str, Any]],
    max_new_tokens: int,
    batch_size: int,
) -> list[str]:
    """Greedy answers of a reader as the transformers Auto classes load it, padding on the left.

    Each row has an `image`, of any size, and a `question`; `generate` takes `batch_size` rows at a time.
    """
    found = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["question"]}]}],
                add_generation_prompt=True,
                tokenize=False,
            )
            for row in batch
        ]
        images = [rgb_image(row["image"]) for row in batch]
        inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
        inputs = inputs.to(model.device, model.dtype)
        output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        answers = output[:, inputs["input_ids"].shape[1] :]
        found += processor.batch_decode(answers, skip_special_tokens=True)
    return found


def value_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Held-out pages of all sizes in turn, each asked for a value: `image`, `question`, `answer`."""
    rows = []
    for i in range(count):
        page = make_page("heldout", seed, i, PAGE_SIZES[i % len(PAGE_SIZES)])
        entry = page.entries[i % len(page.entries)]
        question = VALUE_QUESTION.format(key=entry.key)
        rows.append({"image": page.image, "question": question, "answer": entry.value})
    return rows


def prove(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    qa_count: int = 100,
    ocr_count: int = 24,
    seed: int = 1,
    batch_size: int = 16,
) -> dict[str, float]:
    """Score a reader on held-out pages of its own draw, named by `seed`, one question per page.

    Page sizes take turns, so that batches mix them.

    Returns
    -------
    dict
        `qa`, exact match over `qa_count` value questions, where the whole answer counts and not its first
        line alone; `ocr`, mean character accuracy over `ocr_count` pages; and both counts.
    """
    from sparsemm_eval.tasks.pages.metrics import METRICS

    rows: dict[str, list[dict[str, Any]]] = {"pages_qa": value_rows(qa_count, seed), "pages_ocr": []}
    for i in range(qa_count, qa_count + ocr_count):
        page = make_page("heldout", seed, i, READING_SIZES[i % len(READING_SIZES)])
        rows["pages_ocr"].append({"image": page.image, "question": READ_QUESTION, "answer": page.text()})
    longest = {
        "pages_qa": MAX_NEW_TOKENS["pages_qa"],
        "pages_ocr": 2 + max((len(row["answer"]) for row in rows["pages_ocr"]), default=0),
    }
    means = {}
    for task, asked in rows.items():
        found = replies(model, processor, asked, longest[task], batch_size)
        points = [METRICS[task](reply, row["answer"]) for reply, row in zip(found, asked, strict=True)]
        means[task.removeprefix("pages_")] = sum(points) / max(1, len(points))
    return {**means, "qa_count": qa_count, "ocr_count": ocr_count}
