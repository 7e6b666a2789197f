"""Encoding images before ``generate``, so that the vision tower's hidden states do not outlive the prompt."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

PIXELS = (
    "pixel_values",
    "image_sizes",
)  # what encoded images replace; Qwen2-VL's grid is needed for positions
ENCODER_ARGUMENTS = (*PIXELS, "image_grid_thw")


@torch.no_grad()
def with_encoded_images(model: PreTrainedModel, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a ``generate`` call with image features in place of pixels.

    ``generate`` would encode the images itself and hold on to all of the tower's hidden states until the last
    token; here only the features that the text decoder reads are kept. The tokens are the same.

    Parameters
    ----------
    model : PreTrainedModel
        One that does not take encoded images gets its arguments as they are.
    arguments : dict
        Keyword arguments; left as they are.
    """
    pixels = arguments.get("pixel_values")
    takes_features = "mm_encoder_outputs" in inspect.signature(model.forward).parameters
    if pixels is None or not takes_features or arguments.get("mm_encoder_outputs"):
        return arguments
    if arguments.get("pixel_values_videos") is not None:  # both kinds travel together
        return arguments
    given = {name: arguments[name] for name in ENCODER_ARGUMENTS if arguments.get(name) is not None}
    features = model.base_model.get_image_features(**given, return_dict=True).pooler_output
    others = {name: value for name, value in arguments.items() if name not in PIXELS}
    return {**others, "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)}}
