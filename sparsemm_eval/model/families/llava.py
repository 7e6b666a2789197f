"""LLaVA-NeXT: prompts as upstream's ``llava_hf`` sends them, a thumbnail and full-resolution tiles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from PIL.Image import Image
from transformers import PreTrainedConfig
from transformers.image_processing_utils import select_best_resolution

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.model.families.base import Family
from sparsemm_eval.model.image_tokens import ImageTokens, TokenGrid

IMAGE = "<image>"
#: Opening of Vicuna's conversation, for checkpoints without any chat template.
VICUNA_OPENING = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def context_prompt(processor: Any, context: str, images: int, system_prompt: str | None) -> str:
    """Prompt of the simple protocol: placeholders before the question, then the tokenizer's chat template.

    A tokenizer without template gets Vicuna's conversation, whatever the checkpoint.

    Raises
    ------
    UnsupportedError
        If the template wants structured messages and loses the question.
    """
    question = context if IMAGE in context or not images else " ".join([IMAGE] * images) + "\n" + context
    if processor.tokenizer.chat_template is None:
        return f"{system_prompt or VICUNA_OPENING} USER: {question} ASSISTANT:"
    messages = [{"role": "user", "content": question}]
    if system_prompt:
        messages.insert(0, {"role": "system", "content": system_prompt})
    prompt = processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    # Templates may strip the blanks around a question.
    if question.strip() not in prompt:
        raise UnsupportedError(
            "the tokenizer's chat template wants structured messages and drops plain text: leave out "
            "--force_simple"
        )
    return prompt


def messages_prompt(processor: Any, messages: list, system_prompt: str | None) -> str:
    """Prompt of the chat protocol: the processor's chat template over structured messages.

    Raises
    ------
    UnsupportedError
        If the checkpoint has no chat template.
    """
    if not getattr(processor, "chat_template", None):
        raise UnsupportedError(
            "the checkpoint has no chat template: add --force_simple to use Vicuna's conversation"
        )
    if system_prompt:
        others = [message for message in messages if message["role"] != "system"]
        messages = [{"role": "system", "content": [{"type": "text", "text": system_prompt}]}, *others]
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def prepare_image(image: Image, processor: Any, limits: Mapping[str, int]) -> Image:
    """The image as it is: the processor cuts it into tiles."""
    return image


def image_tokens(config: PreTrainedConfig, width: int, height: int, grid_thw: object = None) -> ImageTokens:
    """Where the tokens of an image of ``width`` x ``height`` pixels lie.

    The image is scaled to fit the best of the model's resolutions, padded evenly, cut into tiles and encoded;
    the model then drops rows or columns of features that are padding, by an integer rule of its own, and puts
    a newline token behind each row.

    Raises
    ------
    UnsupportedError
        If the vision tower's tiles are no whole number of patches, or keep their class token.
    """
    tile, patch = config.vision_config.image_size, config.vision_config.patch_size
    if tile % patch or config.vision_feature_select_strategy != "default":
        raise UnsupportedError(
            f"tiles of {tile} pixels with patches of {patch} and vision_feature_select_strategy="
            f"{config.vision_feature_select_strategy!r}: supported are whole patches and 'default'"
        )
    target_height, target_width = select_best_resolution((height, width), config.image_grid_pinpoints)
    scaled_height, scaled_width = _fit(height, width, target_height, target_width)
    top, left = (target_height - scaled_height) // 2, (target_width - scaled_width) // 2
    rows, columns = target_height // tile * (tile // patch), target_width // tile * (tile // patch)
    cut_rows, cut_columns = _padding_cells(height, width, rows, columns)
    side = tile // patch
    grid = TokenGrid(
        first=side * side,
        stride=columns - 2 * cut_columns + 1,
        rows=rows - 2 * cut_rows,
        columns=columns - 2 * cut_columns,
        scale=(Fraction(scaled_width, width * patch), Fraction(scaled_height, height * patch)),
        offset=(Fraction(left, patch) - cut_columns, Fraction(top, patch) - cut_rows),
    )
    base = TokenGrid(0, side, side, side, (Fraction(side, width), Fraction(side, height)))
    return ImageTokens(width, height, grid.first + grid.rows * grid.stride, grid, base)


def thumbnail(config: PreTrainedConfig) -> int:
    """Tokens of the thumbnail, which stands before the tiles: 576 of the released models."""
    return (config.vision_config.image_size // config.vision_config.patch_size) ** 2


def _fit(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """Size of the scaled image inside the target, rounded as the image processor does."""
    scale_x, scale_y = target_width / width, target_height / height
    if scale_x < scale_y:
        return min(math.ceil(height * scale_x), target_height), target_width
    return target_height, min(math.ceil(width * scale_y), target_width)


def _padding_cells(height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of features that the model drops on each side, rounded as it does."""
    if width / height > columns / rows:
        return (rows - int(round(height * (columns / width), 7))) // 2, 0
    return 0, (columns - int(round(width * (rows / height), 7))) // 2


FAMILY = Family(
    name="llava",
    title="LLaVA-NeXT",
    default_checkpoint="llava-hf/llava-v1.6-vicuna-7b-hf",
    model_types=("llava_next",),
    context_prompt=context_prompt,
    messages_prompt=messages_prompt,
    prepare_image=prepare_image,
    image_tokens=image_tokens,
    thumbnail=thumbnail,
    default_max_new_tokens=1024,
)
