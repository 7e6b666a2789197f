"""LLaVA-NeXT: prompts as upstream's ``llava_hf`` sends them, in both of lmms-eval's protocols."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from PIL.Image import Image
from transformers.image_processing_utils import select_best_resolution

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.model.families.family import Family

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


def image_tokens(image: Image, processor: Any) -> int:
    """Tokens of the thumbnail and of the tiles of the chosen resolution, padding included."""
    height, width = select_best_resolution(
        (image.height, image.width), processor.image_processor.image_grid_pinpoints
    )
    side = processor.image_processor.size
    tile = side.get("shortest_edge") or min(side["height"], side["width"])
    return math.ceil((height * width + tile * tile) / processor.patch_size**2)


LLAVA = Family(
    name="llava",
    title="LLaVA-NeXT",
    default_checkpoint="llava-hf/llava-v1.6-vicuna-7b-hf",
    model_types=("llava_next",),
    context_prompt=context_prompt,
    messages_prompt=messages_prompt,
    prepare_image=prepare_image,
    image_tokens=image_tokens,
    default_max_new_tokens=1024,
)
