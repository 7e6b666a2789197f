"""The seven benchmarks' own questions about one document each, as upstream words them."""

from pathlib import Path

import lmms_eval.tasks
from lmms_eval.utils import load_yaml_config
from PIL import Image

ROOT = Path(lmms_eval.tasks.__file__).parent
FILES = {
    "ocrbench": "ocrbench/ocrbench.yaml",
    "docvqa_val": "docvqa/docvqa_val.yaml",
    "textvqa_val": "textvqa/textvqa_val.yaml",
    "chartqa": "chartqa/chartqa.yaml",
    "textcaps_val": "textcaps/textcaps_val.yaml",
    "mmbench_en_dev": "mmbench/mmbench_en_dev.yaml",
    "vqav2_val": "vqav2/vqav2_val.yaml",
}
COLUMNS = {
    "dataset": "SROIE",
    "question": "What is the total?",
    "question_type": "Regular Text Recognition",
    "answer": "C",
    "answers": ["9"],
    "question_id": 1,
    "questionId": "1",
    "type": "human_test",
    "image_id": "7",
    "caption_str": ["a sign"],
    "index": 3,
    "hint": "Look at the last line.",
    "A": "nine",
    "B": "ten",
    "C": "eleven",
    "D": "nan",
    "category": "ocr",
    "L2-category": "fine",
    "source": "x",
    "split": "dev",
}


def question(task, model_name, image):
    """Context and images of a task's document, worded for a model name.

    Returns
    -------
    context, images, gen_kwargs
    """
    config = load_yaml_config(str(ROOT / FILES[task]), mode="full")
    specific = config.get("lmms_eval_specific_kwargs") or {}
    if model_name in specific:
        specific = specific[model_name]
    elif "default" in specific:
        specific = specific | specific["default"]
    document = COLUMNS | {"image": image}
    context = config["doc_to_text"](document, specific)
    return context, config["doc_to_visual"](document), config.get("generation_kwargs") or {}


def image_of(size):
    """An RGBA image with some content."""
    return Image.linear_gradient("L").resize(size).convert("RGBA").rotate(17)
