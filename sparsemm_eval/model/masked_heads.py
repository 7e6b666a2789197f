"""Masking query heads of a model: hooks that zero their queries or what they return."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from sparsemm_eval.checks import checked
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.scores.table import Head
from sparsemm_eval.methods.head_masking import MASK_MODE
from sparsemm_eval.model.text_decoder import find_text_decoder


@contextmanager
def masked_heads(model: PreTrainedModel, heads: Sequence[Head], mode: str = "query") -> Iterator[None]:
    """Mask query heads of the text decoder inside a ``with`` block.

    Parameters
    ----------
    model : PreTrainedModel
        As for ``compress``; both can be used together.
    heads : sequence of (layer, query head)
        Heads to mask.
    mode : str
        ``query`` zeroes the head's query, so that it attends evenly to everything (the paper's code);
        ``output`` zeroes what it returns.

    Raises
    ------
    ConfigError
        For an unknown mode or a head the model does not have.
    """
    checked(MASK_MODE.kind, MASK_MODE.name, mode)
    decoder = find_text_decoder(model)
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        if not (0 <= layer < decoder.num_layers and 0 <= head < decoder.num_heads):
            raise ConfigError(
                "heads", (layer, head), f"(layer < {decoder.num_layers}, query head < {decoder.num_heads})"
            )
        by_layer.setdefault(layer, []).append(head)
    with ExitStack() as undo:
        for layer, masked in by_layer.items():
            attention = decoder.attentions[layer]
            # on the weights' device: a captured decode step can copy nothing from the host
            keep = torch.ones(decoder.num_heads, decoder.head_dim, device=attention.o_proj.weight.device)
            keep[masked] = 0.0
            if mode == "query":
                hook = attention.q_proj.register_forward_hook(_scale_output(keep.flatten()))
            else:
                hook = attention.o_proj.register_forward_pre_hook(_scale_input(keep.flatten()))
            undo.callback(hook.remove)
        yield


def _scale_output(keep: torch.Tensor) -> Any:
    def hook(module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return output * keep.to(output)  # [B, N, H*D]; RoPE leaves zero at zero

    return hook


def _scale_input(keep: torch.Tensor) -> Any:
    def hook(module: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (args[0] * keep.to(args[0]),)

    return hook
