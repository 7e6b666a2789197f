"""Head masking: what a model loses without some of its heads (paper, section on masking visual heads)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.scores.table import Head, HeadScores, count_of
from sparsemm_eval.model.text_decoder import find_text_decoder

MODES = ("query", "output")


def top_heads(scores: HeadScores, share: float) -> list[Head]:
    """The ``share`` of query heads with the highest scores, best first."""
    return scores.best_heads(count_of(share, scores.table.numel()))


def random_heads(
    num_layers: int, num_heads: int, share: float, seed: int, exclude: Iterable[Head] = ()
) -> list[Head]:
    """A ``share`` of all query heads drawn without replacement, never one of ``exclude``.

    Raises
    ------
    ConfigError
        If fewer heads than asked for are left to draw from.
    """
    excluded = set(exclude)
    candidates = [(i, j) for i in range(num_layers) for j in range(num_heads) if (i, j) not in excluded]
    count = count_of(share, num_layers * num_heads)
    if count > len(candidates):
        raise ConfigError(
            "mask_ratio",
            share,
            f"at most {len(candidates)} of {num_layers * num_heads} heads after exclusion",
        )
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))[:count]
    return [candidates[int(index)] for index in order]


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
    if mode not in MODES:
        raise ConfigError("mask_mode", mode, "one of " + ", ".join(MODES))
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
