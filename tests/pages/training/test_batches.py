from dataclasses import replace

import torch

from sparsemm_eval.pages.readers.recipe import FOUNDATION
from sparsemm_eval.pages.readers.registry import READERS, build
from sparsemm_eval.pages.training.batches import IGNORE, make_batch

PLAIN = FOUNDATION[0]


def test_batches_are_deterministic_and_answer_only():
    _, processor = build("tiny-reader")
    tokenizer, stage = processor.tokenizer, replace(PLAIN, variety=0.5)
    first, second = (make_batch(READERS["tiny-reader"], tokenizer, stage, 0, 3, (8, 16), 4) for _ in range(2))
    for name in ("pixels", "suffix", "targets", "answers", "reading"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    for row, page in enumerate(first.pages):
        answers = tokenizer.decode(first.targets[row][first.targets[row] != IGNORE]).split("</s>")[:-1]
        if first.reading[row]:
            assert answers == [page.text()]
        else:
            assert sorted(answers) == sorted(entry.value for entry in page.entries)[: len(answers)] or set(
                answers
            ) <= {entry.value for entry in page.entries}


def test_recall_lists_the_entries_in_another_order_and_asks_for_the_values():
    _, processor = build("tiny-reader-qwen2vl")
    tokenizer = processor.tokenizer
    batch = make_batch(
        READERS["tiny-reader-qwen2vl"], tokenizer, replace(PLAIN, recall=1.0), 0, 3, (8, 16), 16
    )
    assert not batch.reading.any()
    orders = set()
    for row in range(6, 16):  # the first six look values up
        entries = batch.pages[row].entries
        listed = (
            tokenizer.decode(batch.suffix[row]).split("assistant\n")[1].split("<|endoftext|>")[0].split("\n")
        )
        assert sorted(listed) == sorted(entry.text for entry in entries)
        orders.add(tuple(listed) == tuple(entry.text for entry in entries))
        asked = tokenizer.decode(batch.targets[row][batch.targets[row] != IGNORE])
        assert asked == "".join(line.split()[1] for line in listed)
    assert False in orders


def test_a_hint_is_the_first_character_at_the_end_of_the_question():
    _, processor = build("tiny-reader-qwen2vl")
    tokenizer = processor.tokenizer
    plain, hinted = (
        make_batch(READERS["tiny-reader-qwen2vl"], tokenizer, replace(PLAIN, hint=hint), 0, 3, (8, 16), 16)
        for hint in (False, True)
    )
    assert torch.equal(plain.suffix, hinted.suffix)
    places = (plain.targets != hinted.targets).nonzero().tolist()
    assert len(places) == sum(min(12, len(page.entries)) for page in plain.pages[:6])
    for row, position in places:
        assert tokenizer.decode(plain.suffix[row, position]) == "?"
        after = plain.answers[row, position:]
        first = position + int((after >= 0).nonzero()[0])
        assert hinted.targets[row, position] == plain.targets[row, first]
        assert hinted.answers[row, position] == plain.answers[row, first]
