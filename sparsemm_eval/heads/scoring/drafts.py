"""Answering in one pass where the answer is known beforehand: the ground truth as a draft to be confirmed.

A model that reads a page without a mistake says exactly its text. One pass over prompt and text shows whether
greedy decoding would have said the same, token by token; only where it would not must the model decode. It is
the pass that probes the heads, so a confirmed answer costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from sparsemm_eval.heads.anchors.record import AnchorSample
from sparsemm_eval.heads.scoring.answers import (
    Sequences,
    encode_prompts,
    end_tokens,
    generated_answers,
    join,
)

# An answer may be so many tokens longer than the ground truth.
EXTRA_TOKENS = 8
# Drafts after the first have at most so many tokens, since what follows a mistake is less certain.
DRAFT_TOKENS = 32
# So many last tokens of the answer are looked for in the ground truth, the longest ends first.
SUFFIXES = (8, 4, 2)
# After PATIENCE passes, drafts must have given WORTH tokens per pass, or the model decodes by itself.
PATIENCE, WORTH = 8, 2


def positions_to_confirm(sequences: Sequences) -> int:
    """How many positions at the end of padded sequences cover every one that predicts an answer token."""
    return sequences.inputs["input_ids"].shape[1] - min(map(len, sequences.prompts)) + 1


def greedy_answers(
    model: PreTrainedModel,
    processor: Any,
    samples: Sequence[AnchorSample],
    drafts: Sequences,
    said: torch.Tensor,
    limit: int,
) -> list[list[int]]:
    """What greedy decoding answers, end of sequence left out.

    An answer has at most ``limit`` tokens and ends ``EXTRA_TOKENS`` after the length of its ground truth.

    Parameters
    ----------
    drafts : Sequences
        B prompts with the ground truth as answers.
    said : torch.Tensor
        int64 [B, ``positions_to_confirm(drafts)``], likeliest next tokens.
    """
    first = min(map(len, drafts.prompts))
    limits = [min(limit, len(truth) + EXTRA_TOKENS) for truth in drafts.answers]
    answers = []
    for row, (prompt, truth) in enumerate(zip(drafts.prompts, drafts.answers, strict=True)):
        # The last of these tokens is what the model says after the whole draft.
        tokens = said[row, len(prompt) - first :][: len(truth) + 1].tolist()
        known = tokens[: _agreeing(tokens, truth) + 1]
        answers.append(redrafted(model, processor, samples[row], truth, known, limits[row]))
    rest = [row for row, answer in enumerate(answers) if answer is None]
    if rest:
        inputs = encode_prompts(model, processor, [samples[row] for row in rest])
        decoded = generated_answers(model, inputs, max(limits[row] for row in rest))
        for row, answer in zip(rest, decoded, strict=True):
            answers[row] = answer[: limits[row]]
    return answers


@torch.inference_mode()
def redrafted(
    model: PreTrainedModel,
    processor: Any,
    sample: AnchorSample,
    truth: list[int],
    known: list[int],
    limit: int,
) -> list[int] | None:
    """The greedy answer of one sample; after a surprise the rest of the ground truth is the next draft.

    Every pass confirms a piece of its draft and says one token more: a page with a few mistakes takes a few
    passes where decoding takes one per character. ``known`` is how the answer begins, at least one token, and
    no pass is needed if it ends there; ``limit`` is the most tokens it may have. None if it has so little to
    do with the ground truth that decoding is quicker.
    """
    ends = end_tokens(model)
    cache = DynamicCache(config=model.config.get_text_config())
    answer, new, passes = [], known, 0
    while True:
        stop = next((place for place, token in enumerate(new) if token in ends), len(new))
        answer += new[:stop]
        if stop < len(new) or len(answer) >= limit:
            return answer[:limit]
        if passes >= PATIENCE and len(answer) - len(known) < passes * WORTH:
            return None
        draft = continuation(truth, answer)[: limit - len(answer)]
        if passes == 0:
            inputs = encode_prompts(model, processor, [sample])
            step = join(inputs, [answer + draft], processor.tokenizer.pad_token_id or 0)
            prompt = len(step.prompts[0])
            given = step.inputs
        else:
            surplus = cache.get_seq_length() - (prompt + len(answer) - 1)
            if surplus:
                cache.crop(-surplus)
            given = {"input_ids": inputs["input_ids"].new_tensor([[answer[-1], *draft]])}
        logits = model(**given, past_key_values=cache, use_cache=True, logits_to_keep=len(draft) + 1).logits
        said = logits[0].argmax(-1).tolist()
        new = said[: _agreeing(said, draft) + 1]
        passes += 1


def continuation(truth: list[int], answer: list[int]) -> list[int]:
    """The part of the ground truth that comes next, where the end of the answer shows the place in it."""
    for length in SUFFIXES:
        if length > len(answer):
            continue
        places = [
            place
            for place in range(length, len(truth) + 1)
            if truth[place - length : place] == answer[-length:]
        ]
        if places:
            # Of several such places, take the one whose distance from the start is nearest to the answer's.
            place = min(places, key=lambda place: abs(place - len(answer)))
            return truth[place : place + DRAFT_TOKENS]
    # The answer may have one wrong token here and go on rightly.
    return truth[len(answer) : len(answer) + DRAFT_TOKENS]


def _agreeing(said: Sequence[int], draft: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = zip(said, draft, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(said), len(draft)))
