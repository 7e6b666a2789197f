"""The parts of `smol-reader`: LLaVA-NeXT around a pretrained language model, SmolLM2-135M-Instruct.

The vision tower is `tiny-reader`'s and stays as it is. What is learned, and shipped, is a projector and
low-rank changes of the language model's layers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from sparsemm_eval.files import replacing
from sparsemm_eval.model import shipped
from sparsemm_eval.pages.readers import adapter
from sparsemm_eval.pages.readers.language_model import language_model
from sparsemm_eval.pages.readers.tokenizer import SpecialTokens

#: A special token that SmolLM2 does not use becomes the image token, so that the vocabulary stays as it is.
IMAGE_TOKEN, _UNUSED = "<image>", "<empty_output>"


def tokenizer(_: SpecialTokens) -> PreTrainedTokenizerFast:
    """SmolLM2's own tokenizer with an image token; it pads on the left."""
    with tempfile.TemporaryDirectory() as place:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            text = (language_model() / name).read_text(encoding="utf-8")
            Path(place, name).write_text(text.replace(_UNUSED, IMAGE_TOKEN), encoding="utf-8")
        # What is set later would not be saved.
        settings = {"padding_side": "left", "pad_token": "<|endoftext|>", "model_max_length": 8192}
        found = AutoTokenizer.from_pretrained(place, **settings)
    found.name_or_path = ""
    return found


def new_model(
    tokens: PreTrainedTokenizerFast, pinpoints: list[list[int]], tile: int, patch: int
) -> PreTrainedModel:
    """The language model and the vision tower as they are, a projector with random weights; float32."""
    vision = transformers.AutoConfig.from_pretrained(shipped.ROOT / "tiny-reader").vision_config
    text = transformers.AutoConfig.from_pretrained(language_model())
    text.name_or_path = ""
    text.pad_token_id = tokens.pad_token_id
    vision.dtype = text.dtype = torch.float32
    config = transformers.LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokens.convert_tokens_to_ids(IMAGE_TOKEN),
        image_grid_pinpoints=pinpoints,
        image_seq_length=(tile // patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = transformers.LlavaNextForConditionalGeneration(config)
    with torch.no_grad():
        words = transformers.AutoModelForCausalLM.from_pretrained(language_model(), dtype=torch.float32)
        model.model.language_model.load_state_dict(words.model.state_dict())
        model.tie_weights()
        seen = load_file(shipped.ROOT / "tiny-reader" / "model.safetensors")
        part = {name.partition("vision_tower.")[2]: value.float() for name, value in seen.items()}
        model.model.vision_tower.load_state_dict({name: value for name, value in part.items() if name})
        newline = tokens.convert_tokens_to_ids("Ċ")
        model.model.image_newline.copy_(model.model.language_model.embed_tokens.weight[newline])
    return model


def ready_to_learn(model: PreTrainedModel) -> None:
    """Freeze all but the projector, and let the language model's layers change at low rank."""
    adapter.add(model)
    model.model.multi_modal_projector.requires_grad_(True)


def _learned(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What `adapter.safetensors` holds: the projector and the low-rank changes, bfloat16."""
    projector = {
        f"projector.{name}": value for name, value in model.model.multi_modal_projector.named_parameters()
    }
    found = projector | adapter.factors(model)
    return {name: value.detach().to(torch.bfloat16).contiguous() for name, value in found.items()}


def save(model: PreTrainedModel, _: ProcessorMixin, folder: str | Path) -> None:
    """Write what a model has learned."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with replacing(Path(folder) / shipped.ADAPTER.name) as path:
        path.write_bytes(to_bytes(_learned(model)))


def restore(model: PreTrainedModel, folder: str | Path) -> None:
    """Give a model that is ready to learn what `save` wrote."""
    found = load_file(Path(folder) / shipped.ADAPTER.name)
    _put_projector(model, found)
    adapter.put(model, found)


def merge(model: PreTrainedModel, folder: str | Path, whole: bool = True) -> None:
    """Add to a new model what `save` wrote; unless it is to be `whole`, the projector alone."""
    found = load_file(Path(folder) / shipped.ADAPTER.name)
    _put_projector(model, found)
    if whole:
        adapter.merge(model, found)


def _put_projector(model: PreTrainedModel, found: dict[str, torch.Tensor]) -> None:
    model.model.multi_modal_projector.load_state_dict(
        {
            name.removeprefix("projector."): value
            for name, value in found.items()
            if name.startswith("projector.")
        }
    )
