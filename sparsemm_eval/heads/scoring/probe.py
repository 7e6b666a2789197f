"""The probe: which keys each query head looks at hardest, at chosen positions, in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from sparsemm_eval import compat
from sparsemm_eval.checks import checked, whole
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.model.text_decoder import TextDecoder, find_text_decoder

# transformers tests attention names for "sdpa", "flash" and "flex_attention" as substrings
PROBE = "sparsemm_probe"
# float32 attention logits alive at a time (64 MiB), so that the probe needs little more than a prefill
MAX_LOGITS = 2**24
# (query [B, H, N, D], key [B, K, N, D], queries [B, Q]) -> what is noted of a layer
Reduce = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class _Recorder:
    queries: torch.Tensor  # [B, Q]
    reduce: Reduce
    last_layer: int | None  # after which nothing more is wanted
    found: dict[int, torch.Tensor] = field(default_factory=dict)


class _AllSeenError(Exception):
    """Ends a forward pass after the last layer that is wanted."""


@torch.inference_mode()
def strongest_keys(
    model: PreTrainedModel, inputs: Mapping[str, Any], queries: torch.Tensor, topk: int = 1, last: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the model once over whole sequences and note where each head looks hardest.

    Attention itself runs on SDPA; the ``topk`` largest logits are found beside it, in chunks over keys and
    only for the chosen positions, so no attention matrix is ever made.

    Parameters
    ----------
    model : PreTrainedModel
        Any model that ``compress`` takes. Its attention is as before afterwards, also after an exception.
    inputs : mapping
        Model inputs of B sequences, padded **on the right** and without ``attention_mask``: causal attention
        never looks at padding on the right.
    queries : torch.Tensor
        int64 [B, Q], positions to look from. Repeat any position to fill a row up.
    topk : int
        How many keys to note.
    last : int
        Number of positions, counted from the end of the padded sequences, whose likeliest next tokens are
        wanted as well; 0 ends the pass where the last layer has been looked at.

    Returns
    -------
    (torch.Tensor, torch.Tensor)
        Key positions int64 [L, B, H, Q, topk], strongest first, and -1 where a position sees fewer than
        ``topk`` keys; and the likeliest next tokens int64 [B, last].

    Raises
    ------
    ConfigError
        If ``inputs`` holds an attention mask, or ``queries`` or ``topk`` cannot be right.
    """
    checked(whole(1, inputs["input_ids"].shape[1]), "topk", topk)
    keys, logits = _probe(model, inputs, queries, lambda *tensors: top_keys(*tensors, topk), last)
    return keys, queries.new_empty(len(queries), 0) if logits is None else logits.argmax(-1)


@torch.inference_mode()
def attention_rows(model: PreTrainedModel, inputs: Mapping[str, Any], queries: torch.Tensor) -> torch.Tensor:
    """The whole attention of every head at chosen positions as float32 [L, B, H, Q, N]; for pictures.

    The arguments are those of ``strongest_keys``.
    """
    return _probe(model, inputs, queries, _attention, 0)[0]


def _probe(
    model: PreTrainedModel, inputs: Mapping[str, Any], queries: torch.Tensor, reduce: Reduce, last: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What was noted of all layers, stacked, and the logits [B, last, vocabulary], None for last = 0."""
    length = inputs["input_ids"].shape[1]
    if inputs.get("attention_mask") is not None:
        raise ConfigError("inputs", sorted(inputs), "no attention_mask: sequences padded on the right")
    filled = queries.ndim == 2 and queries.numel() > 0
    if not (filled and 0 <= int(queries.min()) <= int(queries.max()) < length):
        remedy = f"a non-empty [B, Q] of positions in [0, {length})"
        raise ConfigError("queries", tuple(queries.shape), remedy)
    decoder = find_text_decoder(model)
    recorder = _Recorder(queries, reduce, None if last else decoder.num_layers - 1)
    logits = None
    with _recording(decoder, recorder), suppress(_AllSeenError):
        logits = model(**inputs, use_cache=False, logits_to_keep=last or 1).logits
    found = [recorder.found[layer].to(queries.device) for layer in range(decoder.num_layers)]
    return torch.stack(found), logits


def top_keys(query: torch.Tensor, key: torch.Tensor, queries: torch.Tensor, topk: int) -> torch.Tensor:
    """Keys with the largest causal attention logits, int64 [B, H, Q, topk]; torch orders equal logits.

    ``query`` [B, H, N, D] and ``key`` [B, K, N, D] are after RoPE; ``queries`` is int64 [B, Q].
    """
    rows, heads, keys, count = *query.shape[:2], key.shape[2], queries.shape[1]
    chosen, limit = _chosen_queries(query, key, queries)
    step = max(MAX_LOGITS // (rows * heads * count), topk)
    best, where = None, None
    for start in range(0, keys, step):
        logits = chosen @ key[:, :, start : start + step].float().transpose(2, 3)  # [B, K, G*Q, step]
        index = torch.arange(start, start + logits.shape[-1], device=key.device)
        logits.masked_fill_(index > limit, -torch.inf)
        # ``max`` needs a fraction of the time of ``topk``
        top, place = logits.max(-1, keepdim=True) if topk == 1 else logits.topk(min(topk, logits.shape[-1]))
        place = place + start
        if best is not None:
            top, order = torch.cat([best, top], -1).topk(topk, dim=-1)
            place = torch.cat([where, place], -1).gather(-1, order)
        best, where = top, place
    return where.masked_fill(best == -torch.inf, -1).view(rows, heads, count, topk)


def _attention(query: torch.Tensor, key: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """float32 [B, H, Q, N]; all supported models scale by the root of the head dimension."""
    chosen, limit = _chosen_queries(query, key, queries)
    logits = chosen @ key.float().transpose(2, 3) * query.shape[-1] ** -0.5  # [B, K, G*Q, N]
    logits.masked_fill_(torch.arange(key.shape[2], device=key.device) > limit, -torch.inf)
    return logits.softmax(-1).view(query.shape[0], query.shape[1], queries.shape[1], -1)


def _chosen_queries(
    query: torch.Tensor, key: torch.Tensor, queries: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Query vectors float32 [B, K, G*Q, D] and the last key each may see [B, 1, G*Q, 1]."""
    rows, heads, _, dim = query.shape
    kv_heads, count = key.shape[1], queries.shape[1]
    chosen = query.gather(2, queries[:, None, :, None].expand(rows, heads, count, dim)).float()
    limit = queries[:, None, :].expand(rows, heads // kv_heads, count).reshape(rows, 1, -1, 1)
    return chosen.view(rows, kv_heads, -1, dim), limit


def _probe_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    probe_recorder: _Recorder | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    if probe_recorder is not None:
        queries = probe_recorder.queries.to(query.device)
        probe_recorder.found[module.layer_idx] = probe_recorder.reduce(query, key, queries)
        if module.layer_idx == probe_recorder.last_layer:
            raise _AllSeenError
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output, None


@contextmanager
def _recording(decoder: TextDecoder, recorder: _Recorder) -> Iterator[None]:
    AttentionInterface.register(PROBE, _probe_attention)
    AttentionMaskInterface.register(PROBE, sdpa_mask)

    def hand_over(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "probe_recorder": recorder}

    with ExitStack() as undo:
        undo.enter_context(compat.attention_set_to(decoder.config, PROBE))
        for attention in decoder.attentions:
            undo.callback(attention.register_forward_pre_hook(hand_over, with_kwargs=True).remove)
        yield
