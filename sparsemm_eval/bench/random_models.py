"""Models of the exact shapes of the paper's, with random weights: their speed without a download."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from sparsemm_eval.heads.scores.table import HeadScores

LLAVA_NEXT_7B = "random-llava-next-7b"
TILE, PATCH = 336, 14
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
# share of heads, best first, and the share of all scores they hold; the paper's figure of visual heads
CONCENTRATION = ((0.05, 0.56), (0.10, 0.77), (1.0, 1.0))


@dataclass(frozen=True)
class ModelShape:
    """One text decoder; `extra` are further arguments of transformers' config class, `kind`."""

    title: str
    kind: type
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    extra: dict = field(default_factory=dict)

    def config(self, positions: int, layers: int | None = None, **more: Any) -> PreTrainedConfig:
        """For up to so many tokens; with fewer layers if wanted."""
        return self.kind(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=layers or self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=positions,
            **self.extra,
            **more,
        )


NO_WINDOW = {"sliding_window": None}
SHAPES = {
    "vicuna": ModelShape("LLaVA-NeXT-Vicuna-7B", LlamaConfig, 32, 4096, 11008, 32, 32, 32064),
    "mistral": ModelShape("LLaVA-NeXT-Mistral-7B", MistralConfig, 32, 4096, 14336, 32, 8, 32064, NO_WINDOW),
    "qwen2vl": ModelShape("Qwen2-VL-7B", Qwen2Config, 28, 3584, 18944, 28, 4, 152064),
    "smol": ModelShape("SmolLM2-135M", LlamaConfig, 30, 576, 1536, 9, 3, 49152),
    "tiny": ModelShape("tiny", LlamaConfig, 2, 64, 96, 4, 2, 97),
}


def build(
    shape: ModelShape, device: torch.device, dtype: torch.dtype, positions: int, layers: int | None = None
) -> PreTrainedModel:
    """The decoder on the device, in eval mode, for up to ``positions`` tokens; fewer ``layers`` if wanted."""
    config = shape.config(
        positions, layers, tie_word_embeddings=False, pad_token_id=0, eos_token_id=None, bos_token_id=None
    )
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.generation_config.eos_token_id = None  # answers have the length that is asked for
    model.generation_config.pad_token_id = 0
    return model.eval().requires_grad_(False)


def random_llava_next_7b(
    device: str | torch.device, dtype: torch.dtype, layers: int = 32
) -> tuple[PreTrainedModel, Any]:
    """A whole LLaVA-NeXT and its processor; text becomes one token per character."""
    from sparsemm_eval.pages.readers.registry import build as build_reader

    _, processor = build_reader("tiny-reader")
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=TILE,
        patch_size=PATCH,
        projection_dim=768,
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=SHAPES["vicuna"].config(8192, layers),
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=(TILE // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
    # the tiny reader's, for other tiles
    processor.patch_size = PATCH
    processor.image_processor = LlavaNextImageProcessor(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=PINPOINTS,
    )
    return model.eval(), processor


def synthetic_scores(layers: int, heads: int, seed: int = 0) -> HeadScores:
    """Head scores [layers, query heads] as concentrated as the published ones, where none are measured."""
    count = layers * heads
    scores = torch.zeros(count, dtype=torch.float64)
    begin, held = 0, 0.0
    for share, total in CONCENTRATION:
        end = max(round(share * count), begin + 1)
        scores[begin:end] = (total - held) / (end - begin)
        begin, held = end, total
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return HeadScores.from_array(scores[order].view(layers, heads))


def weight_bytes(model: PreTrainedModel) -> tuple[int, int]:
    """(held, read per token) bytes of the weights: of the embedding only a row per sequence is read."""
    held = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    embedding = model.get_input_embeddings().weight
    return held, held - embedding.numel() * embedding.element_size()
