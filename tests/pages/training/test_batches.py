from dataclasses import replace

import numpy as np
import torch

from sparsemm_eval.pages.drawing.layout import ALL_WORDS, keyed_once
from sparsemm_eval.pages.readers.recipe import FOUNDATION
from sparsemm_eval.pages.readers.registry import READERS, build
from sparsemm_eval.pages.training.batches import IGNORE, _spelled, make_batch

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


def test_answers_are_spelled_with_the_same_text():
    _, processor = build("tiny-reader")
    tokenizer = processor.tokenizer
    ids = [*tokenizer("value of AB", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    rng = np.random.default_rng(0)
    assert _spelled(ids, rng, 0.0, tokenizer) == ids
    whole = _spelled(ids, rng, 1.0, tokenizer)
    assert tokenizer.decode(whole) == tokenizer.decode(ids)
    assert [len(tokenizer.decode([token])) for token in whole[:-1]] == [1] * len("value of AB")
    assert whole[-1] == tokenizer.eos_token_id


def test_rows_of_several_pages_ask_for_keys_that_one_page_has():
    _, processor = build("tiny-reader")
    stage = replace(PLAIN, pages=3, values=0.5)
    batch = make_batch(READERS["tiny-reader"], processor.tokenizer, stage, 0, 3, (8, 16), 4)
    assert (len(batch.pages), len(batch.pixels), len(batch.suffix)) == (12, 12, 4)
    assert batch.reading.tolist() == [False, False, True, True]
    for row in range(4):
        pages = batch.pages[3 * row : 3 * row + 3]
        said = processor.tokenizer.decode(batch.targets[row][batch.targets[row] != IGNORE])
        answers = said.split("</s>")[:-1]
        if batch.reading[row]:
            assert answers == ["\n".join(page.text() for page in pages)]
        else:
            assert set(answers) <= {entry.value for entry in keyed_once(pages)}
            assert len(answers) > max(len(page.entries) for page in pages)


def test_the_stage_decides_what_pages_show():
    _, processor = build("tiny-reader")

    def pages(**changes):
        stage = replace(PLAIN, **changes)
        return make_batch(READERS["tiny-reader"], processor.tokenizer, stage, 0, 3, (8, 16), 16).pages

    assert all(entry.value.isdigit() for page in pages(letters=0.0) for entry in page.entries)
    assert not any(page.entries[0].value.isdigit() for page in pages(letters=1.0))
    assert {word for page in pages(prose=1.0) for entry in page.keyed for word in entry.value.split()} <= {
        *ALL_WORDS
    }
