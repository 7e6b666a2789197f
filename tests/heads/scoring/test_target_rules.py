"""Which answer tokens count."""

from __future__ import annotations

import pytest
from PIL import Image

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.heads.anchors.record import AnchorSample, TextBox
from sparsemm_eval.heads.scoring.batch_scores import aligned_targets, unique_targets
from tests.heads.scoring.samples import processor_of


@pytest.fixture
def tokenizer():
    return processor_of("tiny-reader").tokenizer


def sample_of(answer, boxes):
    return AnchorSample("a", Image.new("RGB", (200, 100)), "read", answer, tuple(boxes))


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def box(number):
    return (number, 0, number + 1, 1)


def test_unique_tokens_count_each_time_they_are_generated(tokenizer):
    sample = sample_of("", [TextBox("ab", box(0)), TextBox("bc", box(1)), TextBox("1 2", box(2))])
    targets = unique_targets(tokenizer, sample, ids(tokenizer, "abcax 1"))
    # b stands in two pairs, x in none, and the blank is no text
    assert [(target.index, target.boxes) for target in targets] == [
        (0, (box(0),)),
        (2, (box(1),)),
        (3, (box(0),)),
        (6, (box(2),)),
    ]


def test_a_token_twice_in_one_pair_is_unique(tokenizer):
    sample = sample_of("", [TextBox("aa", box(0)), TextBox("b", box(1))])
    assert [target.index for target in unique_targets(tokenizer, sample, ids(tokenizer, "ba"))] == [0, 1]


def test_words_are_found_with_and_without_a_blank_before_them(tokenizer):
    assert ids(tokenizer, " page") != ids(tokenizer, "page")
    sample = sample_of("", [TextBox("page", box(0)), TextBox("text", box(1))])
    answer = ids(tokenizer, "page text")
    assert [target.boxes for target in unique_targets(tokenizer, sample, answer)] == [(box(0),), (box(1),)]


def aligned(tokenizer, answer, truth="AB 12\nCD 3"):
    boxes = [TextBox(c, box(i), i) for i, c in enumerate(truth) if not c.isspace()]
    targets = aligned_targets(tokenizer, sample_of(truth, boxes), ids(tokenizer, answer))
    return [(target.index, target.boxes[0][0]) for target in targets]


def test_aligned_tokens_stand_where_the_transcription_says(tokenizer):
    assert aligned(tokenizer, "AB 12\nCD 3") == [(0, 0), (1, 1), (3, 3), (4, 4), (6, 6), (7, 7), (9, 9)]


def test_aligned_tokens_survive_errors_around_them(tokenizer):
    assert aligned(tokenizer, "AB 92\nCD 3") == [(0, 0), (1, 1), (4, 4), (6, 6), (7, 7), (9, 9)]
    # one character left out, one too many
    assert aligned(tokenizer, "AB 2\nCDx 3") == [(0, 0), (1, 1), (3, 4), (5, 6), (6, 7), (9, 9)]
    assert aligned(tokenizer, "zzz") == []


def test_aligned_tokens_of_several_characters_have_all_their_boxes(tokenizer):
    letters = [TextBox(c, box(i), i) for i, c in enumerate("page")]
    [target] = aligned_targets(tokenizer, sample_of("page", letters), ids(tokenizer, "page"))
    assert target.boxes == tuple(box(i) for i in range(4))
    [target] = aligned_targets(
        tokenizer, sample_of("page", [TextBox("page", box(5), 0)]), ids(tokenizer, "page")
    )
    assert target.boxes == (box(5),)


def test_aligned_boxes_need_their_place(tokenizer):
    with pytest.raises(UnsupportedError, match=r"TextBox\.start"):
        aligned_targets(tokenizer, sample_of("a", [TextBox("a", box(0))]), [1])
