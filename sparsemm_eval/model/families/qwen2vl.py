"""Qwen2-VL: prompts and image sizes as upstream's ``qwen2_vl``, without its JPEG re-encoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from PIL.Image import Image, Resampling
from transformers import PreTrainedConfig

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.model.families.base import Family
from sparsemm_eval.model.image_tokens import ImageTokens, TokenGrid

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
    """Resize to whole cells of merged patches within the pixel limits.

    Upstream assumes patches of 14 pixels, those of the released models; here the checkpoint's count.
    """
    from qwen_vl_utils.vision_process import fetch_image  # takes seconds, and not every command needs it

    record = {"image": image, **limits}
    return fetch_image(record, image_patch_size=processor.image_processor.patch_size)


def shrink_image(image: Image, processor: Any, share: float) -> Image:
    """Make a prepared image smaller, so that about ``share`` of its tokens is left, in about its shape."""
    cell = processor.image_processor.patch_size * processor.image_processor.merge_size
    columns, rows = (side // cell for side in image.size)
    down = max(1, round(rows * share**0.5))
    across = max(1, min(columns, round(rows * columns * share / down)))
    return image.resize((across * cell, down * cell), Resampling.BICUBIC)


def image_tokens(
    config: PreTrainedConfig, width: int, height: int, grid_thw: Sequence[int] | None = None
) -> ImageTokens:
    """Where the tokens of an image of ``width`` x ``height`` pixels lie: cells of merged patches, row by row.

    The image is resized, not padded, so cells are fractions of the image. M-RoPE gives tokens other positions
    to rotate by; their order in the prompt stays row-major.

    Raises
    ------
    UnsupportedError
        If the grid has several frames.
    """
    patch, merge = config.vision_config.patch_size, config.vision_config.spatial_merge_size
    frames, down, across = (1, height // patch, width // patch) if grid_thw is None else map(int, grid_thw)
    if frames != 1:
        raise UnsupportedError(
            f"image_grid_thw={grid_thw}: expected the grid of a still image, (1, rows, columns)"
        )
    rows, columns = down // merge, across // merge
    scale = (Fraction(columns, width), Fraction(rows, height))
    return ImageTokens(width, height, rows * columns, TokenGrid(0, columns, rows, columns, scale))


FAMILY = Family(
    name="qwen2vl",
    title="Qwen2-VL",
    default_checkpoint="Qwen/Qwen2-VL-7B-Instruct",
    model_types=("qwen2_vl",),
    context_prompt=context_prompt,
    prepare_image=prepare_image,
    image_tokens=image_tokens,
    shrink_image=shrink_image,
    default_max_new_tokens=128,
    pixel_limits={"min_pixels": 3136, "max_pixels": 602112},
    strip_answers=True,
    clean_up_blanks=False,
)
