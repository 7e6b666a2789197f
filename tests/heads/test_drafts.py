"""Drafts: confirmed exactly where greedy decoding says the same."""

from __future__ import annotations

import pytest
import torch

from sparsemm_eval.heads import batch_scores, drafts
from sparsemm_eval.heads.anchors.record import AnchorSample
from sparsemm_eval.heads.answers import encode_prompts, generated_answers, join
from sparsemm_eval.heads.batch_scores import ScoringRule, score_batch
from sparsemm_eval.heads.drafts import EXTRA_TOKENS, confirmed, positions_to_confirm
from tests.heads.samples import character_sample, processor_of
from tests.heads.test_batch_scores import ending
from tests.tiny_models import IMAGE_FAMILIES, model_of


def said_by(family, samples, tokens=12):
    model = model_of(family)
    return generated_answers(model, encode_prompts(model, processor_of(family), samples), tokens)


def confirm(model, inputs, answers, limit=64):
    sequences = join(inputs, answers, 0)
    last = positions_to_confirm(sequences)
    with torch.no_grad():
        said = model(**sequences.inputs, use_cache=False, logits_to_keep=last).logits.argmax(-1)
    return confirmed(model, sequences, said, limit)


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_confirmed_where_decoding_says_the_same(family):
    model, samples = model_of(family), [character_sample(0, i) for i in range(3)]
    free = said_by(family, samples)
    end = max(free[0], key=free[0].index)  # what comes first as late as possible
    with ending(model, end):
        said = said_by(family, samples)
        assert 1 <= len(said[0]) < 12
        drafts = [list(answer) for answer in said]
        wrong = [list(answer) for answer in said]
        wrong[0][-1] += 1
        inputs = encode_prompts(model, processor_of(family), samples)
        found, others = confirm(model, inputs, drafts), confirm(model, inputs, wrong)
        assert found[0]
        assert not others[0]
        assert found[1:] == others[1:]
        # an answer that was cut off is none that the model would have ended there
        assert not any(right for right, answer in zip(found, said, strict=True) if len(answer) == 12)
        assert not confirm(model, inputs, [said[0][:-1], *said[1:]])[0]
        assert not confirm(model, inputs, [[*said[0], end], *said[1:]])[0]


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

        monkeypatch.setattr(drafts, "ground_truth_answers", truths_of)
        monkeypatch.setattr(batch_scores, "ground_truth_answers", truths_of)
        monkeypatch.setattr(drafts, "generated_answers", counting)
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
