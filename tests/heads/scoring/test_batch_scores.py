"""Scores against the literal reference."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.anchors.pages import PAGE_TEXT, PAGE_VALUES, PAGES
from sparsemm_eval.heads.scoring.batch_scores import ScoringRule, score_batch
from tests.heads.scoring.reference import literal_scores
from tests.heads.scoring.samples import CHARACTERS, processor_of
from tests.tiny_models import IMAGE_FAMILIES, model_of


@contextmanager
def eager(model):
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


@contextmanager
def ending(model, token):
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = token
    try:
        yield
    finally:
        model.generation_config.eos_token_id = before


def assert_equal(found, expected, answer):
    scores, hits, _ = expected
    assert found.answer_tokens == len(answer)
    assert found.hits.tolist() == hits
    torch.testing.assert_close(found.scores, torch.tensor(scores, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
@pytest.mark.parametrize("changes", [{}, {"topk": 3, "include_base": True}])
def test_generate_mode_equals_the_literal_reference(family, changes):
    model, processor = model_of(family), processor_of(family)
    samples = [CHARACTERS.sample(0, i) for i in range(3)]
    rule = ScoringRule("generate", "unique", max_new_tokens=12, **changes)
    with eager(model):
        expected = [literal_scores(model, processor, sample, rule) for sample in samples]
    found = score_batch(model, processor, samples, rule)
    assert sum(int(score.hits.sum()) for score in found) > 0
    for score, truth in zip(found, expected, strict=True):
        assert_equal(score, truth, truth[2])


def test_answers_end_at_the_end_of_sequence():
    family = "tiny-reader"
    model, processor = model_of(family), processor_of(family)
    samples = [CHARACTERS.sample(0, i) for i in range(3)]
    rule = ScoringRule("generate", "unique", max_new_tokens=12)
    with eager(model):
        free = literal_scores(model, processor, samples[0], rule)[2]
        with ending(model, free[5]):
            expected = [literal_scores(model, processor, sample, rule) for sample in samples]
    assert len(expected[0][2]) == free.index(free[5])
    with ending(model, free[5]):
        found = score_batch(model, processor, samples, rule)
    for score, truth in zip(found, expected, strict=True):
        assert_equal(score, truth, truth[2])


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
@pytest.mark.parametrize("anchor", [PAGES, PAGE_VALUES, PAGE_TEXT], ids=lambda anchor: anchor.name)
def test_teacher_mode_on_pages_equals_the_literal_reference(family, anchor):
    model, processor = model_of(family), processor_of(family)
    sample = min((anchor.sample(0, i) for i in range(6)), key=lambda sample: len(sample.answer))
    rule = ScoringRule("teacher", "aligned")
    answer = processor.tokenizer.encode(sample.answer, add_special_tokens=False)
    with eager(model):
        expected = literal_scores(model, processor, sample, rule, forced=answer)
    [found] = score_batch(model, processor, [sample], rule)
    assert found.tokens == len(sample.boxes)
    assert_equal(found, expected, answer)


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_rows_of_a_batch_do_not_touch_each_other(family):
    model, processor = model_of(family), processor_of(family)
    samples = [CHARACTERS.sample(1, i) for i in range(4)]
    rule = ScoringRule("generate", "unique", max_new_tokens=10)
    together = score_batch(model, processor, samples, rule)
    for sample, score in zip(samples, together, strict=True):
        [alone] = score_batch(model, processor, [sample], rule)
        assert torch.equal(alone.hits, score.hits)
        assert torch.equal(alone.scores, score.scores)
        assert (alone.tokens, alone.answer_tokens) == (score.tokens, score.answer_tokens)


def test_an_answer_without_counted_tokens_scores_zero():
    model, processor = model_of("tiny-reader"), processor_of("tiny-reader")
    model.generation_config.eos_token_id = None
    rule = ScoringRule("generate", "aligned", max_new_tokens=3)
    sample = PAGE_VALUES.sample(0, 0)
    [score] = score_batch(model, processor, [sample], rule)
    assert (score.tokens, float(score.scores.sum())) == (0, 0.0)
    assert score.scores.shape == score.hits.shape == (6, 8)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mode": "force"}, "mode"),
        ({"rule": "exact"}, "rule"),
        ({"topk": 0}, "topk"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
    ],
)
def test_wrong_rules_are_refused(changes, named):
    with pytest.raises(ConfigError, match=named):
        ScoringRule(**changes)
