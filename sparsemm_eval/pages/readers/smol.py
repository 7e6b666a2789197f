"""The parts of `smol-reader`: LLaVA-NeXT around a pretrained language model, SmolLM2-135M-Instruct.

The vision tower is `tiny-reader`'s and stays as it is. What is learned, and shipped, is a projector and
low-rank changes of the language model's layers (LoRA, Hu et al. 2022): a projection's weight W [out, in]
becomes W + SCALE * B A with A [rank, in] and B [out, rank].
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from sparsemm_eval.files import replacing
from sparsemm_eval.model import shipped
from sparsemm_eval.pages.readers.language_model import language_model
from sparsemm_eval.pages.readers.tokenizer import SpecialTokens

SCALE = 2.0
#: Part of a layer, its projections, and the rank of their changes.
TARGETS = (
    ("self_attn", ("q_proj", "k_proj", "v_proj", "o_proj"), 16),
    ("mlp", ("gate_proj", "up_proj", "down_proj"), 8),
)


class Adapted(nn.Module):
    """A frozen projection with its low-rank change; the change is nothing at first."""

    def __init__(self, base: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        weight = base.weight
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features, dtype=weight.dtype))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, dtype=weight.dtype))
        nn.init.kaiming_uniform_(self.lora_a, a=5**0.5, generator=generator)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The projection of [..., in] to [..., out]."""
        return self.base(hidden) + SCALE * (hidden @ self.lora_a.T) @ self.lora_b.T


def _projections(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module, str, int]]:
    """Name, parent, attribute and rank of every adapted projection of the text model."""
    for part, names, rank in TARGETS:
        for number, layer in enumerate(model.model.language_model.layers):
            for name in names:
                yield f"layers.{number}.{name}", getattr(layer, part), name, rank


def add_factors(model: PreTrainedModel) -> None:
    """Freeze a model and give the projections of its text model a change that can be learned.

    The first factors are the same every time.
    """
    model.requires_grad_(False)
    generator = torch.Generator()
    for _, parent, name, rank in _projections(model):
        setattr(parent, name, Adapted(getattr(parent, name), rank, generator))


def factors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What a model with `add_factors` has learned, by name."""
    found = {}
    for name, parent, attribute, _ in _projections(model):
        adapted = getattr(parent, attribute)
        found |= {f"{name}.lora_a": adapted.lora_a, f"{name}.lora_b": adapted.lora_b}
    return found


@torch.no_grad()
def put_factors(model: PreTrainedModel, learned: dict[str, torch.Tensor]) -> None:
    """Give a model with `add_factors` what another has learned."""
    for name, parameter in factors(model).items():
        parameter.copy_(learned[name])


@torch.no_grad()
def merge_factors(model: PreTrainedModel, learned: dict[str, torch.Tensor]) -> None:
    """Add what was learned to the weights of a plain model."""
    for name, parent, attribute, _ in _projections(model):
        weight = getattr(parent, attribute).weight
        # In double precision, so that every machine rounds to the same weights.
        change = learned[f"{name}.lora_b"].double() @ learned[f"{name}.lora_a"].double()
        weight.copy_(weight.double() + SCALE * change)


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
    add_factors(model)
    model.model.multi_modal_projector.requires_grad_(True)


def _learned(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What `adapter.safetensors` holds: the projector and the low-rank changes, bfloat16."""
    projector = {
        f"projector.{name}": value for name, value in model.model.multi_modal_projector.named_parameters()
    }
    found = projector | factors(model)
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
    put_factors(model, found)


def merge(model: PreTrainedModel, folder: str | Path, whole: bool = True) -> None:
    """Add to a new model what `save` wrote; unless it is to be `whole`, the projector alone."""
    found = load_file(Path(folder) / shipped.ADAPTER.name)
    _put_projector(model, found)
    if whole:
        merge_factors(model, found)


def _put_projector(model: PreTrainedModel, found: dict[str, torch.Tensor]) -> None:
    model.model.multi_modal_projector.load_state_dict(
        {
            name.removeprefix("projector."): value
            for name, value in found.items()
            if name.startswith("projector.")
        }
    )
