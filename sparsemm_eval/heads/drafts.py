"""Answering in one pass where the answer is known beforehand: the ground truth as a draft to be confirmed.

A model that reads a page without a mistake says exactly its text. One pass over prompt and text shows whether
greedy decoding would have said the same, token by token; only where it would not must the model decode. It is
the pass that probes the heads, so a confirmed answer costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from sparsemm_eval.heads.anchors.record import AnchorSample
from sparsemm_eval.heads.answers import (
    Sequences,
    encode_prompts,
    end_tokens,
    generated_answers,
    ground_truth_answers,
    join,
)

# room for an answer that adds something to the ground truth
EXTRA_TOKENS = 8


def positions_to_confirm(sequences: Sequences) -> int:
    """How many positions at the end of padded sequences cover every one that predicts an answer token."""
    return sequences.inputs["input_ids"].shape[1] - min(map(len, sequences.prompts)) + 1


def confirmed(model: PreTrainedModel, sequences: Sequences, said: torch.Tensor, limit: int) -> list[bool]:
    """Which drafts greedy decoding would have produced, end of sequence included.

    Parameters
    ----------
    model : PreTrainedModel
    sequences : Sequences
        B prompts with their drafts as answers, end of sequence left out.
    said : torch.Tensor
        int64 [B, ``positions_to_confirm(sequences)``], likeliest next tokens.
    limit : int
        Most tokens of an answer; a longer draft would have been cut.
    """
    ends, found = end_tokens(model), []
    first = min(map(len, sequences.prompts))
    for prompt, draft, row in zip(sequences.prompts, sequences.answers, said.tolist(), strict=True):
        start = len(prompt) - first
        # the last token of the longest sequence predicts the end, too
        tokens = row[start : start + len(draft) + 1]
        whole = tokens[:-1] == draft and tokens[-1] in ends and not ends & set(draft)
        found.append(whole and len(draft) <= limit)
    return found


def decoded_instead(
    model: PreTrainedModel, processor: Any, samples: Sequence[AnchorSample], limit: int
) -> Sequences:
    """Prompts and greedy answers of samples whose drafts were not confirmed.

    Parameters
    ----------
    model, processor, samples
        See ``encode_prompts``.
    limit : int
        Most tokens of an answer; it also ends ``EXTRA_TOKENS`` after the length of its ground truth.
    """
    lengths = [len(draft) + EXTRA_TOKENS for draft in ground_truth_answers(processor, samples)]
    inputs = encode_prompts(model, processor, samples)
    answers = generated_answers(model, inputs, min(limit, max(lengths)))
    answers = [answer[:length] for answer, length in zip(answers, lengths, strict=True)]
    return join(inputs, answers, processor.tokenizer.pad_token_id or 0)
