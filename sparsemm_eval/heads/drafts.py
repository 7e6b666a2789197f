"""Answering in one pass where the answer is known beforehand: the ground truth as a draft to be confirmed.

A model that reads a page without a mistake says exactly its text. One pass over prompt and text shows whether
greedy decoding would have said the same, token by token; only where it would not must the model decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from sparsemm_eval.heads.anchors.record import AnchorSample
from sparsemm_eval.heads.answers import (
    encode_prompts,
    end_tokens,
    generated_answers,
    ground_truth_answers,
    join,
)

# room for an answer that adds something to the ground truth
EXTRA_TOKENS = 8


@torch.inference_mode()
def confirmed(
    model: PreTrainedModel, inputs: dict[str, Any], drafts: Sequence[list[int]], pad: int
) -> list[bool]:
    """Which drafts greedy decoding would have produced, end of sequence included.

    Parameters
    ----------
    model : PreTrainedModel
    inputs : dict
        Of B prompts, from ``encode_prompts``.
    drafts : sequence of list of int
        [B] of token ids without the end of sequence.
    pad : int
        Any token id that is no image token.
    """
    ends = end_tokens(model)
    sequences = join(inputs, drafts, pad)
    length = sequences.inputs["input_ids"].shape[1]
    first = min(map(len, sequences.prompts)) - 1
    output = model(**sequences.inputs, use_cache=False, logits_to_keep=length - first)
    said = output.logits.argmax(-1)  # [B, length - first]
    found = []
    for row, (prompt, draft) in enumerate(zip(sequences.prompts, drafts, strict=True)):
        start = len(prompt) - 1 - first
        tokens = said[row, start : start + len(draft) + 1].tolist()
        found.append(tokens[:-1] == draft and tokens[-1] in ends and not ends & set(draft))
    return found


def drafted_answers(
    model: PreTrainedModel, processor: Any, samples: Sequence[AnchorSample], limit: int, pad: int
) -> list[list[int]]:
    """What the model answers greedily, as token ids; decodes only where the ground truth was not confirmed.

    Parameters
    ----------
    model, processor, samples
        See ``encode_prompts``.
    limit : int
        Most tokens of an answer; it also ends ``EXTRA_TOKENS`` after the length of its ground truth.
    pad : int
        See ``confirmed``.
    """
    drafts = ground_truth_answers(processor, samples)
    answers = [draft[:limit] for draft in drafts]
    right = confirmed(model, encode_prompts(model, processor, samples), drafts, pad)
    rest = [row for row, whole in enumerate(right) if not whole]
    if rest:
        longest = max(len(drafts[row]) for row in rest) + EXTRA_TOKENS
        prompts = encode_prompts(model, processor, [samples[row] for row in rest])
        decoded = generated_answers(model, prompts, min(limit, longest))
        for row, answer in zip(rest, decoded, strict=True):
            answers[row] = answer[: len(drafts[row]) + EXTRA_TOKENS]
    return answers
