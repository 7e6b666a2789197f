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
    feed_forwards : tuple of nn.Module
        The modules beside them that treat every token by itself; empty where they are not found.
    """

    config: PreTrainedConfig
    attentions: tuple[nn.Module, ...]
    feed_forwards: tuple[nn.Module, ...] = ()

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
        If the model's attention layers cannot be found, or compute something that eviction would change.
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
    beside = {
        id(getattr(module, "self_attn", None)): getattr(module, "mlp", None) for module in model.modules()
    }
    attentions = tuple(found[layer] for layer in sorted(found))
    feed_forwards = tuple(beside.get(id(attention)) for attention in attentions)
    decoder = TextDecoder(config, attentions, () if None in feed_forwards else feed_forwards)
    reason = _against(decoder)
    if reason is not None:
        raise UnsupportedError(f"{type(model).__name__} {reason}")
    return decoder


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


def _against(decoder: TextDecoder) -> str | None:
    """Why a cache of this decoder cannot be compressed; None where nothing speaks against it."""
    config, attention = decoder.config, decoder.attentions[0]
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_window"]
    others = ", ".join(sorted(set(kinds) - {"full_attention"}))
    if others:
        return (
            f"has layers of the kind {others} (sliding_window={window}), where eviction by budget has no "
            "meaning: set sliding_window to None if the checkpoint allows it"
        )
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "cross_attention_layers", None):
        return "attends to an encoder's states, which are no part of a prompt that could be cut"
    if getattr(config, "kv_lora_rank", None) is not None:
        return "has multi-head latent attention, whose keys and values differ in size"
    if getattr(config, "attn_logit_softcapping", None) is not None or hasattr(attention, "sinks"):
        return "caps or extends its softmax (softcapping, attention sinks), which SDPA does not compute"
    return None
