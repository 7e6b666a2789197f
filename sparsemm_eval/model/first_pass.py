"""A pass before the prompt is prefilled: what the model looks at while it repeats it, or answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from sparsemm_eval import compat
from sparsemm_eval.cache.ragged_cache import RaggedCache, RaggedLayer
from sparsemm_eval.config import CompressionConfig
from sparsemm_eval.decode.settings import attention_mask_of, refuse_several, setting
from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.methods import fullkv
from sparsemm_eval.methods.base import PromptView
from sparsemm_eval.methods.prompt_attention import paid_by
from sparsemm_eval.model.attention import ATTENTION
from sparsemm_eval.model.text_decoder import TextDecoder

Observe = Callable[[PromptView], torch.Tensor]


class _ObservingLayer(RaggedLayer):
    """Looks at a layer's queries and keys, and stores nothing."""

    observe: Observe
    found: torch.Tensor

    def compress(
        self,
        query: torch.Tensor,
        valid: torch.Tensor | None,
        scaling: float | None,
        output_weight: torch.Tensor | None = None,
    ) -> None:
        view = PromptView(query, self.keys, valid=valid, scaling=scaling, shared=self.shared.once)
        self.keys = self.values = None
        self.found = self.observe(view)


class _ObservingCache(RaggedCache):
    layer_type = _ObservingLayer


def first_pass(
    model: PreTrainedModel,
    decoder: TextDecoder,
    config: CompressionConfig,
    generate: Callable[..., Any],
    arguments: dict[str, Any],
) -> torch.Tensor | None:
    """Attention that every entry of the prompts receives in the pass a method asks for.

    It takes the memory of one layer's dense keys and values, and ``answer_attention`` before that of a whole
    FullKV cache.

    Parameters
    ----------
    generate : callable
        The model's own ``generate``.
    arguments : dict
        Of the call, by name, with encoded images.

    Returns
    -------
    torch.Tensor or None
        float32 [L, B, K, N]; empty where all prompts fit the budget, None where the method asks for none.

    Raises
    ------
    UnsupportedError
        If the call gives no token ids, or the model takes no encoded images.
    """
    if "repeat_attention" in config.needs:
        prepare = _repetition
    elif "answer_attention" in config.needs:
        prepare = _answer
    else:
        return None
    ids = arguments.get("input_ids", arguments.get("inputs"))
    if ids is None:
        raise UnsupportedError(f"input_ids=None: the first pass of {config.method!r} needs token ids")
    settings = arguments.get("generation_config") or model.generation_config
    refuse_several(f"method {config.method!r}", settings, arguments)
    mask = attention_mask_of(settings, arguments)
    fits = getattr(config, "prompt_share", None) is None
    if fits and int(mask.sum(-1).max()) <= config.budget:
        return torch.empty(0)  # nothing is scored
    full = CompressionConfig(fullkv.METHOD.name)
    with torch.no_grad(), compat.attention_set_to(decoder.config, ATTENTION):
        inputs, observe = prepare(model, decoder, full, generate, arguments, ids, mask)
        cache = _ObservingCache(full, decoder.num_layers)
        for layer in cache.layers:
            layer.observe = observe
        model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return torch.stack([layer.found.to(ids.device) for layer in cache.layers])


def _answer(
    model: PreTrainedModel,
    decoder: TextDecoder,
    full: CompressionConfig,
    generate: Callable[..., Any],
    arguments: dict[str, Any],
    ids: torch.Tensor,
    mask: torch.Tensor,
) -> tuple[dict[str, Any], Observe]:
    """FullKV's answer behind the prompt; what the rows that its tokens came from look at, summed."""
    arguments = {name: value for name, value in arguments.items() if name != "streamer"}  # nobody's answer
    output = generate(past_key_values=RaggedCache(full, decoder.num_layers), **arguments)
    tokens, width = getattr(output, "sequences", output), ids.shape[1]
    settings = arguments.get("generation_config") or model.generation_config
    pad = setting("pad_token_id", settings, arguments)
    counts = _answer_lengths(tokens[:, width:], _end_tokens(model, arguments), pad)
    tokens = tokens[:, : width + max(counts) - 1]
    added = tokens.shape[1] - width
    inputs = _inputs(model, arguments, tokens, torch.cat([mask, mask.new_ones(len(mask), added)], 1))

    lengths = mask.sum(-1).tolist()
    spans = [_Span(n - 1, n - 1 + count, n) for n, count in zip(lengths, counts, strict=True)]
    return inputs, _observer(width, lengths, spans, "sum")


def _repetition(
    model: PreTrainedModel,
    decoder: TextDecoder,
    full: CompressionConfig,
    generate: Callable[..., Any],
    arguments: dict[str, Any],
    ids: torch.Tensor,
    mask: torch.Tensor,
) -> tuple[dict[str, Any], Observe]:
    """The context twice; the largest attention of its second time on every position of the first."""
    image, begin = getattr(model.config, "image_token_id", None), model.generation_config.bos_token_id
    contexts, twice = [], []
    for row, present in zip(ids, mask.bool(), strict=True):
        tokens = row[present]
        places = (tokens == image).nonzero() if image is not None else tokens[:0]
        context = tokens[: int(places[-1]) + 1] if len(places) else tokens
        again = context[1:] if begin is not None and int(context[0]) == begin else context
        contexts.append(len(context))
        twice.append(torch.cat([context, again]))
    width, longest = ids.shape[1], max(map(len, twice))
    extended, valid = ids.new_zeros(len(ids), longest), mask.new_zeros(len(ids), longest)
    for row, tokens in enumerate(twice):
        extended[row, longest - len(tokens) :] = tokens
        valid[row, longest - len(tokens) :] = 1
    counts = [int((row == image).sum()) if image is not None else 0 for row in ids]
    inputs = _inputs(model, _images_twice(arguments, counts), extended, valid)

    spans = [_Span(n, len(tokens), n) for n, tokens in zip(contexts, twice, strict=True)]
    return inputs, _observer(width, mask.sum(-1).tolist(), spans, "max")


class _Span(NamedTuple):
    """The queries of one prompt's pass that count, and how many of the prompt's positions they look at."""

    first: int
    last: int
    positions: int


def _observer(width: int, lengths: list[int], spans: list[_Span], by: str) -> Observe:
    """What the spans' queries pay to each prompt's first positions: float32 [B, K, width] of every layer."""

    def observe(view: PromptView) -> torch.Tensor:
        found = torch.zeros(view.batch, view.kv_heads, width, device=view.key.device)
        for row, (one, span) in enumerate(zip(view.rows(), spans, strict=True)):
            start = width - lengths[row]
            paid = paid_by(one, span.first, span.last, by)[:, : span.positions]
            found[row, :, start : start + span.positions] = paid
        return found

    return observe


def _images_twice(arguments: dict[str, Any], counts: Sequence[int]) -> dict[str, Any]:
    """The arguments with every prompt's images given twice; counts: image tokens per prompt."""
    outputs = arguments.get("mm_encoder_outputs")
    if outputs is None and arguments.get("pixel_values") is None:
        return arguments
    if outputs is None:
        raise UnsupportedError("the context cannot be repeated: the model takes no encoded images")
    features, grid = list(outputs["image"].pooler_output), arguments.get("image_grid_thw")
    order, image = [], 0
    for count in counts:
        first = image
        while count > 0:
            count -= len(features[image])
            image += 1
        order += [*range(first, image)] * 2
    doubled = BaseModelOutputWithPooling(pooler_output=[features[place] for place in order])
    arguments = {**arguments, "mm_encoder_outputs": {"image": doubled}}
    return arguments if grid is None else {**arguments, "image_grid_thw": grid[order]}


def _inputs(
    model: PreTrainedModel, arguments: dict[str, Any], ids: torch.Tensor, mask: torch.Tensor
) -> dict[str, Any]:
    """Of a forward call: the given images with other tokens."""
    names = ("mm_encoder_outputs", "image_grid_thw", "pixel_values", "image_sizes")
    inputs = {name: arguments[name] for name in names if arguments.get(name) is not None}
    if arguments.get("mm_token_type_ids") is not None:
        kinds = (ids == model.config.image_token_id).to(arguments["mm_token_type_ids"])
        inputs["mm_token_type_ids"] = kinds
    return {**inputs, "input_ids": ids, "attention_mask": mask}


def _end_tokens(model: PreTrainedModel, arguments: dict[str, Any]) -> set[int]:
    config = arguments.get("generation_config") or model.generation_config
    ends = arguments.get("eos_token_id", config.eos_token_id)
    return set() if ends is None else set(ends) if isinstance(ends, (list, tuple)) else {int(ends)}


def _answer_lengths(answers: torch.Tensor, ends: set[int], pad: int | None) -> list[int]:
    """Tokens of every answer, its end token included; behind what a stop text ended is padding alone."""
    counts = []
    for row in answers.tolist():
        while len(row) > 1 and row[-1] == pad and pad not in ends:
            row.pop()
        counts.append(next((i + 1 for i, token in enumerate(row) if token in ends), len(row)))
    return counts
