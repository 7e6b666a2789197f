"""Text decoders of the exact shapes of the paper's models, with random weights, built where they run."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config

from sparsemm_eval.errors import ConfigError


@dataclass(frozen=True)
class ModelShape:
    """One text decoder.

    Attributes
    ----------
    name, title : str
    kind : type
        transformers' config class.
    layers, hidden, intermediate, heads, kv_heads, vocabulary : int
    extra : dict
        Further arguments of the config.
    """

    name: str
    title: str
    kind: type
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    extra: dict = field(default_factory=dict)

    @property
    def head_dim(self) -> int:
        """D."""
        return self.hidden // self.heads

    def entry_bytes(self, element: int) -> int:
        """Bytes of one token's keys and values over all layers and KV heads."""
        return 2 * self.layers * self.kv_heads * self.head_dim * element


SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape("vicuna", "LLaVA-NeXT-Vicuna-7B", LlamaConfig, 32, 4096, 11008, 32, 32, 32064),
        ModelShape(
            "mistral",
            "LLaVA-NeXT-Mistral-7B",
            MistralConfig,
            32,
            4096,
            14336,
            32,
            8,
            32064,
            {"sliding_window": None},
        ),
        ModelShape("qwen2vl", "Qwen2-VL-7B", Qwen2Config, 28, 3584, 18944, 28, 4, 152064),
        ModelShape("tiny", "tiny", LlamaConfig, 2, 64, 96, 4, 2, 97),
    )
}


def shape_of(name: str) -> ModelShape:
    """A shape by name.

    Raises
    ------
    ConfigError
        For an unknown name.
    """
    if name not in SHAPES:
        raise ConfigError("shape", name, "one of " + ", ".join(SHAPES))
    return SHAPES[name]


def build(
    shape: ModelShape, device: torch.device, dtype: torch.dtype, positions: int, layers: int | None = None
) -> PreTrainedModel:
    """The decoder on the device, in eval mode, for up to ``positions`` tokens; fewer ``layers`` if wanted."""
    config = shape.kind(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=layers or shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=None,
        bos_token_id=None,
        **shape.extra,
    )
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.generation_config.eos_token_id = None  # answers have the length that is asked for
    model.generation_config.pad_token_id = 0
    return model.eval().requires_grad_(False)


def weight_bytes(model: PreTrainedModel) -> tuple[int, int]:
    """(held, read per token) bytes of the weights: of the embedding only a row per sequence is read."""
    held = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    embedding = model.get_input_embeddings().weight
    return held, held - embedding.numel() * embedding.element_size()
