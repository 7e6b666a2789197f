"""Visual scores of a batch of samples: answer, look where each head looked, compare with the boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from sparsemm_eval.checks import Count, one_of, record
from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.heads.anchors.record import AnchorSample
from sparsemm_eval.heads.scoring.answers import (
    Sequences,
    encode_prompts,
    generated_answers,
    ground_truth_answers,
    join,
)
from sparsemm_eval.heads.scoring.drafts import greedy_answers, positions_to_confirm
from sparsemm_eval.heads.scoring.probe import strongest_keys
from sparsemm_eval.model.image_tokens import Box


@dataclass(frozen=True)
class Target:
    """An answer token that counts."""

    index: int  # of the token in the answer
    boxes: tuple[Box, ...]  # where it stands; several for a token of several characters under ``aligned``


def unique_targets(tokenizer: Any, sample: AnchorSample, answer: Sequence[int]) -> list[Target]:
    """The paper's rule: tokens that occur in exactly one (text, box) pair, as often as they are generated.

    A pair's text is tokenized as it is and with a blank before it, since a word has other tokens inside a
    sentence than at its start. The answer's token ids lack the end of sequence.
    """
    holders: dict[int, set[int]] = {}
    for number, item in enumerate(sample.boxes):
        for text in (item.text, " " + item.text):
            for token in tokenizer(text, add_special_tokens=False).input_ids:
                holders.setdefault(token, set()).add(number)
    targets = []
    for index, token in enumerate(answer):
        pairs = holders.get(token, set())
        if len(pairs) == 1 and tokenizer.decode([token]).strip():
            targets.append(Target(index, (sample.boxes[next(iter(pairs))].box,)))
    return targets


def aligned_targets(tokenizer: Any, sample: AnchorSample, answer: Sequence[int]) -> list[Target]:
    """The rule for transcriptions: the i-th character of the ground truth stands in the i-th character's box.

    A token counts where the answer agrees with the ground truth: in the runs of tokens they have in common,
    in order. A token of several characters stands in the boxes of all of them.

    Raises
    ------
    UnsupportedError
        If a box does not say where its text is in the answer, or the tokenizer gives no offsets.
    """
    if any(item.start is None for item in sample.boxes):
        raise UnsupportedError(
            f"sample {sample.name!r}: the rule 'aligned' needs TextBox.start, use 'unique'"
        )
    if not tokenizer.is_fast:
        raise UnsupportedError("the rule 'aligned' needs a fast tokenizer, one that returns offsets")
    encoded = tokenizer(sample.answer, add_special_tokens=False, return_offsets_mapping=True)
    boxes_at: dict[int, Box] = {
        item.start + i: item.box for item in sample.boxes for i in range(len(item.text))
    }
    matcher = SequenceMatcher(None, list(answer), encoded.input_ids, autojunk=False)
    targets = []
    for block in matcher.get_matching_blocks():
        for step in range(block.size):
            start, end = encoded.offset_mapping[block.b + step]
            boxes = tuple(dict.fromkeys(boxes_at[i] for i in range(start, end) if i in boxes_at))
            if boxes:
                targets.append(Target(block.a + step, boxes))
    return targets


TARGET_RULES = {"unique": unique_targets, "aligned": aligned_targets}


MODES = ("generate", "teacher")


@record
class ScoringRule:
    """What decides an image's scores, besides model and data.

    Attributes
    ----------
    mode : str
        ``generate``: the model answers; ``teacher``: the ground truth is taken as its answer.
    rule : str
        How tokens find their box: ``unique`` (the paper's) or ``aligned``, see their functions.
    topk : int
        Each of the k strongest keys that lies in the region counts; the paper has 1.
    include_base : bool
        Whether LLaVA's thumbnail tokens belong to a region.
    max_new_tokens : int
        Length limit of generated answers; answers under the rule ``aligned`` also end soon after the length
        of the ground truth.
    """

    mode: one_of(*MODES) = "generate"
    rule: one_of(*TARGET_RULES) = "unique"
    topk: Count = 1
    include_base: bool = False
    max_new_tokens: Count = 512


@dataclass(frozen=True, eq=False)
class ImageScore:
    """What one image says about every head.

    ``scores``, float64 [L, H], is the sum over the counted tokens of 1/|region| for each strongest key in the
    region; ``hits``, int64 [L, H], is the number of such keys.
    """

    tokens: int  # answer tokens that counted
    answer_tokens: int  # all of them
    scores: torch.Tensor
    hits: torch.Tensor
    bad_boxes: Mapping[str, int] = field(default_factory=dict)  # that could not be used, by reason


def score_batch(
    model: PreTrainedModel, processor: Any, samples: Sequence[AnchorSample], rule: ScoringRule
) -> list[ImageScore]:
    """Visual scores of some samples (paper, section "visual head identification").

    A head is looked at where it *predicts* the token, one position before the token's own. A sample's scores
    do not depend on the others in the batch.
    """
    inputs = encode_prompts(model, processor, samples)
    pad = processor.tokenizer.pad_token_id or 0
    # Under the rule ``aligned`` the ground truth is a draft of the answer, and the pass that scores it also
    # shows whether it is the model's answer.
    drafting = rule.mode == "generate" and rule.rule == "aligned"
    if rule.mode == "teacher" or drafting:
        answers = ground_truth_answers(processor, samples)
    else:
        answers = generated_answers(model, inputs, rule.max_new_tokens)
    sequences = join(inputs, answers, pad)
    last = positions_to_confirm(sequences) if drafting else 0
    scores, said = _score(model, processor, samples, sequences, rule, last)
    if not drafting:
        return scores
    answers = greedy_answers(model, processor, samples, sequences, said, rule.max_new_tokens)
    rest = [row for row, answer in enumerate(answers) if answer != sequences.answers[row]]
    if rest:
        others = [samples[row] for row in rest]
        decoded = join(encode_prompts(model, processor, others), [answers[row] for row in rest], pad)
        for row, score in zip(rest, _score(model, processor, others, decoded, rule, 0)[0], strict=True):
            scores[row] = score
    return scores


def _score(
    model: PreTrainedModel,
    processor: Any,
    samples: Sequence[AnchorSample],
    sequences: Sequences,
    rule: ScoringRule,
    last: int,
) -> tuple[list[ImageScore], torch.Tensor]:
    """Scores of given answers, and what the model would say at the last positions."""
    places: list[list[int]] = [[] for _ in samples]  # positions that predict counted tokens
    regions: list[list[torch.Tensor]] = [[] for _ in samples]  # the tokens' regions
    for row, sample in enumerate(samples):
        prompt, answer = sequences.prompts[row], sequences.answers[row]
        tokens, positions = sequences.shown_tokens(model, processor, row, sample)
        for target in TARGET_RULES[rule.rule](processor.tokenizer, sample, answer):
            region = {i for box in target.boxes for i in tokens.region(box, rule.include_base)}
            if region:
                places[row].append(len(prompt) + target.index - 1)
                regions[row].append(positions[sorted(region)])
    # A row without counted tokens looks from position 0, as rows that are filled up do.
    queries = pad_sequence([torch.tensor(found or [0]) for found in places], batch_first=True)
    found, said = strongest_keys(model, sequences.inputs, queries.to(model.device), rule.topk, last)
    hits, scores = _compare(found.cpu(), regions)
    images = [
        ImageScore(len(regions[i]), len(sequences.answers[i]), scores[i], hits[i], sample.bad_boxes)
        for i, sample in enumerate(samples)
    ]
    return images, said


def _compare(found: torch.Tensor, regions: list[list[torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Hits int64 [B, L, H] and scores float64 [B, L, H] of strongest keys [L, B, H, Q, topk]."""
    layers, rows, heads, count, topk = found.shape
    last = max((int(region.max()) for targets in regions for region in targets), default=0)
    inside = torch.zeros(rows, count, int(found.max()) + 2 + last, dtype=torch.bool)
    weight = torch.zeros(rows, count, dtype=torch.float64)
    for row, targets in enumerate(regions):
        for place, region in enumerate(targets):
            inside[row, place, region] = True
            weight[row, place] = 1 / len(region)
    # A missing key is -1, which stands for the last column, and no region holds that one.
    index = found.permute(1, 3, 0, 2, 4).reshape(rows, count, -1)  # [B, Q, L*H*topk]
    hit = inside.gather(2, index % inside.shape[2]).view(rows, count, layers, heads, topk)
    each = hit.sum(-1)  # [B, Q, L, H]
    return each.sum(1), torch.einsum("bqlh,bq->blh", each.double(), weight)
