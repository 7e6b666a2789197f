"""Image tokens of any supported family, and their places in a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedConfig

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.model.families.llava_next_tokens import llava_next_tokens
from sparsemm_eval.model.families.qwen2vl_tokens import qwen2vl_tokens
from sparsemm_eval.model.image_tokens import ImageTokens

FAMILIES: dict[str, Callable[..., ImageTokens]] = {
    "llava_next": llava_next_tokens,
    "qwen2_vl": qwen2vl_tokens,
}


def image_tokens(
    config: PreTrainedConfig, width: int, height: int, grid_thw: Sequence[int] | None = None
) -> ImageTokens:
    """Where the tokens of one image lie.

    Parameters
    ----------
    config : PreTrainedConfig
        Of the whole model.
    width, height : int
        Of the image in pixels, before any processing.
    grid_thw : sequence of int, optional
        The image's row of ``image_grid_thw``, for models that have one.

    Raises
    ------
    UnsupportedError
        If the model is of no supported family.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UnsupportedError(
            f"model_type={config.model_type!r}: boxes can be mapped to image tokens for "
            + ", ".join(sorted(FAMILIES))
        )
    return family(config, width, height, grid_thw)


def image_token_id(config: PreTrainedConfig) -> int:
    """Id of the token that stands for one image feature."""
    found = getattr(config, "image_token_id", None)
    return config.image_token_index if found is None else found


def prompt_positions(config: PreTrainedConfig, input_ids: torch.Tensor, tokens: ImageTokens) -> torch.Tensor:
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
    found = (input_ids.cpu() == image_token_id(config)).nonzero().flatten()
    if len(found) != tokens.count:
        raise UnsupportedError(
            f"the prompt holds {len(found)} image tokens where {tokens.count} are expected for one image of "
            f"{tokens.width} x {tokens.height} pixels: score prompts with exactly one image, and a processor "
            "that belongs to the model"
        )
    return found
