"""What makes a family of tiny readers, and what all of them share."""

from collections.abc import Callable
from dataclasses import dataclass

from sparsemm_eval.pages.readers.chat import ChatFormat
from sparsemm_eval.pages.readers.tokenizer import SpecialTokens

TILE = 128
PATCH = 16
LAYERS = 6


@dataclass(frozen=True)
class Family:
    """One kind of reader.

    Attributes
    ----------
    name : str
        Also the name of its checkpoint folder.
    special : SpecialTokens
    chat : ChatFormat
    image_token : str
        Token that is repeated once per image feature.
    build_model : callable
        (tokenizer) -> model with random weights, float32; draws from torch's global generator.
    build_processor : callable
        (tokenizer, chat template) -> processor.
    """

    name: str
    special: SpecialTokens
    chat: ChatFormat
    image_token: str
    build_model: Callable
    build_processor: Callable


def token_ids(tokenizer):
    """Special token ids as model and generation configs name them."""
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def finish(model, tokenizer):
    """Give the model the generation settings that belong to its tokenizer."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(do_sample=False, **token_ids(tokenizer))
    return model
