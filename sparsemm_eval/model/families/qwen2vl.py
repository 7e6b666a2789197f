"""Qwen2-VL: prompts and image sizes as upstream's ``qwen2_vl``, without its JPEG re-encoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL.Image import Image
from qwen_vl_utils.vision_process import fetch_image

from sparsemm_eval.model.families.family import Family

DEFAULT_SYSTEM_PROMPT = "You are a helpful assistant."


def context_prompt(processor: Any, context: str, images: int, system_prompt: str | None) -> str:
    """Prompt of the simple protocol: system message, images, then the question without ``<image>`` tags."""
    question = {"type": "text", "text": context.replace("<image>", "")}
    messages = [
        {"role": "system", "content": system_prompt or DEFAULT_SYSTEM_PROMPT},
        {"role": "user", "content": [{"type": "image"}] * images + [question]},
    ]
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def prepare_image(image: Image, processor: Any, limits: Mapping[str, int]) -> Image:
    """Resize to whole cells of merged patches within the pixel limits, in RGB.

    Upstream assumes patches of 14 pixels, those of the released models; here the checkpoint's count.
    """
    record = {"image": image.convert("RGB"), **limits}
    return fetch_image(record, image_patch_size=processor.image_processor.patch_size)


def image_tokens(image: Image, processor: Any) -> int:
    """Cells of merged patches."""
    cell = processor.image_processor.patch_size * processor.image_processor.merge_size
    return (image.width // cell) * (image.height // cell)


QWEN2VL = Family(
    name="qwen2vl",
    title="Qwen2-VL",
    default_checkpoint="Qwen/Qwen2-VL-7B-Instruct",
    model_types=("qwen2_vl",),
    context_prompt=context_prompt,
    prepare_image=prepare_image,
    image_tokens=image_tokens,
    default_max_new_tokens=128,
    pixel_limits={"min_pixels": 3136, "max_pixels": 602112},
    strip_answers=True,
    clean_up_blanks=False,
)
