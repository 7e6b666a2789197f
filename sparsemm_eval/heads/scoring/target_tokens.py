"""Which tokens of an answer count, and the boxes each of them should be read from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.heads.anchors.record import AnchorSample
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
