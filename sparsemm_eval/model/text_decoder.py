"""Finding the text decoder's attention layers inside a transformers model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from sparsemm_eval.errors import UnsupportedError


@dataclass(frozen=True)
class TextDecoder:
    """The part of a model whose KV cache is compressed.

    Attributes
    ----------
    config : PreTrainedConfig
        Of the text model; its attention modules share this object.
    attentions : tuple of nn.Module
        Attention modules, one per layer, in order.
    """

    config: PreTrainedConfig
    attentions: tuple[nn.Module, ...]

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.attentions)

    @property
    def num_heads(self) -> int:
        """H, query heads per layer."""
        return self.config.num_attention_heads

    @property
    def num_kv_heads(self) -> int:
        """K, KV heads per layer."""
        return self.config.num_key_value_heads

    @property
    def head_dim(self) -> int:
        """D."""
        return self.attentions[0].head_dim


def find_text_decoder(model: PreTrainedModel) -> TextDecoder:
    """The text decoder of a causal language model, alone or below a vision model.

    Raises
    ------
    UnsupportedError
        If the model's attention layers cannot be found, or use a sliding window.
    """
    config = model.config.get_text_config(decoder=True)
    found = {
        module.layer_idx: module
        for module in model.modules()
        if getattr(module, "layer_idx", None) is not None
        and hasattr(module, "num_key_value_groups")
        and getattr(module, "config", None) is config
    }
    if sorted(found) != list(range(config.num_hidden_layers)):
        raise UnsupportedError(
            f"{type(model).__name__}: found attention layers {sorted(found)} of {config.num_hidden_layers}; "
            "supported are Llama, Mistral, Qwen2 and models that use them below images (LLaVA-NeXT, Qwen2-VL)"
        )
    if _slides(config):
        raise UnsupportedError(
            f"{type(model).__name__} uses sliding-window attention (sliding_window={config.sliding_window}), "
            "where eviction by budget has no meaning: set it to None if the checkpoint allows full attention"
        )
    return TextDecoder(config, tuple(found[layer] for layer in sorted(found)))


def rotary_embedding(model: PreTrainedModel, decoder: TextDecoder) -> nn.Module:
    """The module that turns a text decoder's position ids into rotations.

    Raises
    ------
    UnsupportedError
        If there is none.
    """
    for module in model.modules():
        if hasattr(module, "rotary_emb") and getattr(module, "config", None) is decoder.config:
            return module.rotary_emb
    raise UnsupportedError(
        f"{type(model).__name__} has no rotary embedding to read positions from: use decode=eager"
    )


def _slides(config: PreTrainedConfig) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return any(kind != "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is not None
