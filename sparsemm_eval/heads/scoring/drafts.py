"""Answering in one pass where the answer is known beforehand: the ground truth as a draft to be confirmed.

A model that reads a page without a mistake says exactly its text. One pass over prompt and text shows whether
greedy decoding would have said the same, token by token; only where it would not must the model decode. It is
the pass that probes the heads, so a confirmed answer costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from sparsemm_eval.heads.anchors.record import AnchorSample
from sparsemm_eval.heads.scoring.answers import (
    Sequences,
    encode_prompts,
    end_tokens,
    generated_answers,
    ground_truth_answers,
    join,
)

# room for an answer that adds something to the ground truth
EXTRA_TOKENS = 8
# of a draft after the first; what follows a mistake is less sure
DRAFT_TOKENS = 32
# ends of the answer that are looked for in the ground truth, longest first
SUFFIXES = (8, 4, 2)
# passes until drafts must have brought this many tokens each
PATIENCE, WORTH = 8, 2


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
    for draft, tokens in _drafts_and_said(sequences, said):
        whole = tokens[:-1] == draft and tokens[-1] in ends and not ends & set(draft)
        found.append(whole and len(draft) <= limit)
    return found


def beginnings(sequences: Sequences, said: torch.Tensor) -> list[list[int]]:
    """How greedy decoding begins: each draft as far as the model agrees, and what it says there instead."""
    pairs = _drafts_and_said(sequences, said)
    return [tokens[: _agreeing(tokens, draft) + 1] for draft, tokens in pairs]


def _drafts_and_said(sequences: Sequences, said: torch.Tensor) -> Iterator[tuple[list[int], list[int]]]:
    """Each draft and what the model says in its place; its last token predicts the end, too."""
    first = min(map(len, sequences.prompts))
    for prompt, draft, row in zip(sequences.prompts, sequences.answers, said.tolist(), strict=True):
        yield draft, row[len(prompt) - first :][: len(draft) + 1]


def decoded_instead(
    model: PreTrainedModel,
    processor: Any,
    samples: Sequence[AnchorSample],
    known: Sequence[list[int]],
    limit: int,
) -> Sequences:
    """Prompts and greedy answers of samples whose drafts were not confirmed.

    ``known`` is how each answer begins, see ``beginnings``. An answer has at most ``limit`` tokens and ends
    ``EXTRA_TOKENS`` after the length of its ground truth.
    """
    truths = ground_truth_answers(processor, samples)
    limits = [min(limit, len(truth) + EXTRA_TOKENS) for truth in truths]
    pad = processor.tokenizer.pad_token_id or 0
    answers = []
    for sample, *work in zip(samples, truths, known, limits, strict=True):
        answers.append(redrafted(model, encode_prompts(model, processor, [sample]), pad, *work))
    inputs = encode_prompts(model, processor, samples)
    if any(answer is None for answer in answers):
        decoded = generated_answers(model, inputs, max(limits))
        for row, (answer, length) in enumerate(zip(decoded, limits, strict=True)):
            answers[row] = answer[:length] if answers[row] is None else answers[row]
    return join(inputs, answers, pad)


@torch.inference_mode()
def redrafted(
    model: PreTrainedModel, inputs: dict[str, Any], pad: int, truth: list[int], known: list[int], limit: int
) -> list[int] | None:
    """The greedy answer of one sample; after a surprise the rest of the ground truth is the next draft.

    Every pass confirms a piece of its draft and says one token more: a page with a few mistakes takes a few
    passes where decoding takes one per character. ``known`` is how the answer begins, at least one token;
    ``limit`` is the most it may have. None if it has so little to do with the ground truth that decoding is
    quicker.
    """
    ends = end_tokens(model) | {model.config.image_token_id}
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
            step = join(inputs, [answer + draft], pad)
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
    """What the ground truth has next, as far as the end of the answer shows where in it the answer is."""
    for length in SUFFIXES:
        if length > len(answer):
            continue
        places = [
            place
            for place in range(length, len(truth) + 1)
            if truth[place - length : place] == answer[-length:]
        ]
        if places:
            # of several such places the one nearest to as many tokens from the start
            place = min(places, key=lambda place: abs(place - len(answer)))
            return truth[place : place + DRAFT_TOKENS]
    # another character than the right one: the rest may well be right
    return truth[len(answer) : len(answer) + DRAFT_TOKENS]


def _agreeing(said: Sequence[int], draft: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = zip(said, draft, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(said), len(draft)))
