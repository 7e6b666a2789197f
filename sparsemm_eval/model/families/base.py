"""What a model family is: its prompts, its images, and where an image's tokens lie in a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL.Image import Image
from transformers import PreTrainedConfig

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.model.image_tokens import ImageTokens


@dataclass(frozen=True)
class Family:
    """What differs between model families; everything else is shared.

    Attributes
    ----------
    name, title : str
        Prefix of the model names, and the name for messages.
    default_checkpoint : str
    model_types : tuple of str
        ``config.model_type`` values that belong to the family.
    context_prompt : callable
        ``(processor, context, images, system_prompt) -> str``: prompt of the simple protocol.
    messages_prompt : callable or None
        ``(processor, messages, system_prompt) -> str``: prompt of the chat protocol. None: upstream speaks
        the simple one only, and messages become a context and images.
    prepare_image : callable
        ``(image, processor, pixel limits) -> image`` as the processor shall get it.
    image_tokens : callable
        ``(config, width, height, grid_thw) -> ImageTokens``: which tokens an image of so many pixels takes,
        in their order. ``grid_thw`` is the image's row of ``image_grid_thw`` where the model has one. None:
        the image is taken as prepared.
    shrink_image : callable or None
        ``(image, processor, share) -> image``: a prepared image, made so small that about this share of its
        tokens is left. None: sizes are not the image's own, see ``thumbnail``.
    thumbnail : callable or None
        ``config -> int``: how many of an image's tokens, the first ones, are a thumbnail of it.
    default_max_new_tokens : int
        Where a task gives none.
    pixel_limits : mapping
        Defaults of ``min_pixels`` and ``max_pixels``; empty where the family has none.
    strip_answers : bool
        Whether blanks around an answer go.
    clean_up_blanks : bool or None
        ``clean_up_tokenization_spaces`` of decoding; None: as the tokenizer says.
    """

    name: str
    title: str
    default_checkpoint: str
    model_types: tuple[str, ...]
    context_prompt: Callable[[Any, str, int, str | None], str]
    prepare_image: Callable[[Image, Any, Mapping[str, int]], Image]
    image_tokens: Callable[[PreTrainedConfig, int, int, Sequence[int] | None], ImageTokens]
    default_max_new_tokens: int
    messages_prompt: Callable[[Any, list, str | None], str] | None = None
    shrink_image: Callable[[Image, Any, float], Image] | None = None
    thumbnail: Callable[[PreTrainedConfig], int] | None = None
    pixel_limits: Mapping[str, int] = field(default_factory=dict)
    strip_answers: bool = False
    clean_up_blanks: bool | None = None

    def encode(self, processor: Any, prompts: list[str], images: list[Image]) -> Any:
        """Model inputs of a batch, padded on the left.

        Parameters
        ----------
        processor
            Of the checkpoint; its tokenizer pads on the left.
        prompts : list of str
            [B], with one placeholder per image.
        images : list of PIL.Image.Image
            Prepared images of all rows, in order.

        Returns
        -------
        transformers.BatchFeature
            ``input_ids`` and ``attention_mask`` int64 [B, N], image tensors where there are images.
        """
        return processor(text=prompts, images=images or None, padding=True, return_tensors="pt")


def image_positions(config: PreTrainedConfig, input_ids: torch.Tensor, tokens: ImageTokens) -> torch.Tensor:
    """Positions of an image's tokens in a prompt that holds this one image.

    Parameters
    ----------
    input_ids : torch.Tensor
        int64 [N].

    Returns
    -------
    torch.Tensor
        int64 [tokens.count] on the CPU, ascending.

    Raises
    ------
    UnsupportedError
        If the prompt holds another number of image tokens.
    """
    found = (input_ids.cpu() == config.image_token_id).nonzero().flatten()
    if len(found) != tokens.count:
        raise UnsupportedError(
            f"the prompt holds {len(found)} image tokens where {tokens.count} are expected for one image of "
            f"{tokens.width} x {tokens.height} pixels: score prompts with exactly one image, and a processor "
            "that belongs to the model"
        )
    return found
