"""Drafts: confirmed exactly where greedy decoding says the same."""

from __future__ import annotations

import pytest
import torch

from sparsemm_eval.heads.anchors.pages import page_reading_sample
from sparsemm_eval.heads.anchors.record import AnchorSample
from sparsemm_eval.heads.scoring import batch_scores, drafts
from sparsemm_eval.heads.scoring.answers import encode_prompts, generated_answers, ground_truth_answers, join
from sparsemm_eval.heads.scoring.batch_scores import ScoringRule, score_batch
from sparsemm_eval.heads.scoring.drafts import (
    EXTRA_TOKENS,
    continuation,
    greedy_answers,
    positions_to_confirm,
    redrafted,
)
from sparsemm_eval.model import checkpoint
from sparsemm_eval.model.placement import place
from tests.heads.scoring.samples import character_sample, processor_of
from tests.heads.scoring.test_batch_scores import ending
from tests.lmms_process import is_shipped
from tests.tiny_models import IMAGE_FAMILIES, model_of


def said_by(family, samples, tokens=12):
    model = model_of(family)
    return generated_answers(model, encode_prompts(model, processor_of(family), samples), tokens)


def answers_to(model, family, samples, truths, limit=64):
    """Greedy answers from drafts, and how many of them took a pass of their own."""
    inputs = encode_prompts(model, processor_of(family), samples)
    sequences = join(inputs, truths, 0)
    with torch.no_grad():
        last = positions_to_confirm(sequences)
        said = model(**sequences.inputs, use_cache=False, logits_to_keep=last).logits.argmax(-1)
    passes = []
    hook = model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        return greedy_answers(model, processor_of(family), samples, sequences, said, limit), len(passes)
    finally:
        hook.remove()


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_a_right_draft_is_the_answer_without_a_pass(family):
    model, samples = model_of(family), [character_sample(0, i) for i in range(3)]
    free = said_by(family, samples)
    end = max(free[0], key=free[0].index)  # what comes first as late as possible
    with ending(model, end):
        [said, *_] = said_by(family, samples)
        assert 1 <= len(said) < 12
        assert answers_to(model, family, samples[:1], [said]) == ([said], 0)
        assert answers_to(model, family, samples[:1], [said], limit=1) == ([said[:1]], 0)
        # A draft that holds the end of sequence, breaks off or is wrong, is none of the model's answers.
        assert answers_to(model, family, samples[:1], [[*said, end]])[0] == [said]
        assert answers_to(model, family, samples[:1], [said[:-1]])[0] == [said]
        assert answers_to(model, family, samples[:1], [[*said[:-1], said[-1] + 1]])[0] == [said]


def test_only_what_is_not_confirmed_is_decoded(monkeypatch):
    family = "tiny-reader"
    model, processor = model_of(family), processor_of(family)
    samples = [character_sample(0, i) for i in range(3)]
    free = said_by(family, samples)
    end = max(free[0], key=free[0].index)
    with ending(model, end):
        said = said_by(family, samples)
        truths = {samples[0].name: said[0], samples[1].name: [1, 2, 3], samples[2].name: [1, 2, 3]}

        def truths_of(processor, samples):
            return [truths[sample.name] for sample in samples]

        decoded = []

        def counting(model, inputs, limit):
            decoded.append((len(inputs["input_ids"]), limit))
            return generated_answers(model, inputs, limit)

        monkeypatch.setattr(batch_scores, "ground_truth_answers", truths_of)
        monkeypatch.setattr(drafts, "generated_answers", counting)
        monkeypatch.setattr(drafts, "PATIENCE", 0)  # these answers have nothing to do with the truths
        samples = [AnchorSample(s.name, s.image, s.question, "", ()) for s in samples]
        scores = score_batch(model, processor, samples, ScoringRule("generate", "aligned"))
        assert decoded == [(2, 3 + EXTRA_TOKENS)]
        lengths = [len(said[0]), *(min(len(answer), 3 + EXTRA_TOKENS) for answer in said[1:])]
        assert [score.answer_tokens for score in scores] == lengths
        assert all(float(score.scores.sum()) == 0 for score in scores)


def test_a_sample_scores_the_same_in_any_batch():
    model, processor = model_of("tiny-reader"), processor_of("tiny-reader")
    samples = [character_sample(0, i) for i in range(3)]
    samples = [
        AnchorSample(s.name, s.image, s.question, "ab" * (4 * i + 1), ()) for i, s in enumerate(samples)
    ]
    rule = ScoringRule("generate", "aligned")
    lengths = [score.answer_tokens for score in score_batch(model, processor, samples, rule)]
    assert lengths == [score_batch(model, processor, [sample], rule)[0].answer_tokens for sample in samples]


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
@pytest.mark.parametrize("mistakes", [(), (0,), (3, 4), (2, 9), (11,)])
def test_redrafting_gives_the_greedy_answer_in_few_passes(family, mistakes, monkeypatch):
    model, processor = model_of(family), processor_of(family)
    sample = character_sample(0, 1)
    [said] = said_by(family, [sample], 14)
    truth = [token + 1 if place in mistakes else token for place, token in enumerate(said)]
    passes = []
    real = model.forward
    monkeypatch.setattr(model, "forward", lambda **given: passes.append(1) or real(**given))
    found = redrafted(model, processor, sample, truth, said[:1], 14)
    assert found == said
    # what comes after a mistake can look like another place of the truth, so the bound is loose
    assert len(passes) <= (len(said) - 1 if mistakes else 1)


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_redrafting_with_a_wrong_truth_gives_the_greedy_answer_or_gives_up(family, monkeypatch):
    model, processor = model_of(family), processor_of(family)
    sample = character_sample(0, 0)
    [said] = said_by(family, [sample], 12)
    truth = [token + 1 for token in said]
    assert redrafted(model, processor, sample, truth, said[:1], 12) is None
    monkeypatch.setattr(drafts, "PATIENCE", 99)
    assert redrafted(model, processor, sample, truth, said[:1], 12) == said
    assert redrafted(model, processor, sample, truth, said[:1], 5) == said[:5]
    end = max(said, key=said.index)
    with ending(model, end):
        assert redrafted(model, processor, sample, truth, said[:1], 12) == said[: said.index(end)]


def test_continuations():
    truth = [1, 2, 3, 4, 5, 1, 2, 6, 7]
    assert continuation(truth, [9, 9, 1, 2]) == [3, 4, 5, 1, 2, 6, 7]
    assert continuation(truth, [9, 9, 9, 9, 9, 9, 1, 2]) == [6, 7]
    assert continuation(truth, [1, 2, 3, 8]) == [5, 1, 2, 6, 7]
    assert continuation(truth, [9, 9, 9, 2, 6]) == [7]
    assert continuation(truth, [9] * 9) == []


@pytest.mark.skipif(not is_shipped("tiny-reader"), reason="no trained reader is shipped")
def test_the_shipped_reader_scores_the_same_with_and_without_drafts():
    """In float32: in bfloat16 two tokens can be equally likely, and passes of different lengths differ."""
    loaded = checkpoint.load(checkpoint.find("tiny-reader"), place("cpu", None, "float32"))
    model, processor = loaded.model, loaded.processor
    samples = [page_reading_sample(5, index) for index in (0, 1, 2, 3, 8, 11)]
    rule = ScoringRule("generate", "aligned")
    quick = score_batch(model, processor, samples, rule)
    for sample, found in zip(samples, quick, strict=True):
        inputs = encode_prompts(model, processor, [sample])
        limit = len(ground_truth_answers(processor, [sample])[0]) + EXTRA_TOKENS
        [answer] = generated_answers(model, inputs, limit)
        slow = batch_scores._score(model, processor, [sample], join(inputs, [answer], 0), rule, 0)[0][0]
        assert found.answer_tokens == len(answer)
        assert torch.equal(found.hits, slow.hits)
        assert torch.equal(found.scores, slow.scores)
