"""What the page tasks' YAML files refer to: the image of a document, and its scores."""

from __future__ import annotations

from typing import Any

from PIL import Image

from sparsemm_eval.tasks.pages.metrics import character_accuracy, exact_match


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """The page, or the pages, as a list of RGB images."""
    return [page.convert("RGB") for page in doc.get("images") or [doc["image"]]]


def process_qa(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score one value question; `results` holds the answer alone."""
    return {"exact_match": exact_match(results[0], doc["answer"])}


def process_ocr(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score one transcription; `results` holds the answer alone."""
    return {"character_accuracy": character_accuracy(results[0], doc["answer"])}
