"""Many images: resuming, sharing among processes, summing up."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sparsemm_eval.errors import ConfigError, HeadScoreError
from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.heads.scoring import score_heads as scoring
from sparsemm_eval.heads.scoring.batch_scores import ImageScore, ScoringRule
from sparsemm_eval.heads.scoring.score_heads import Workload, describe, score_heads, summarise
from tests.heads.scoring.samples import CHARACTERS, processor_of
from tests.tiny_models import model_of

RULE = ScoringRule("generate", "unique", max_new_tokens=6)


def score(journal=None, **work):
    arguments = (model_of("tiny-reader"), processor_of("tiny-reader"), CHARACTERS, RULE)
    return score_heads(*arguments, Workload(**{"images": 6, "batch_size": 2, **work}), journal)


@pytest.fixture(scope="module")
def whole():
    return score()


def equal(a, b):
    return list(a) == list(b) and all(
        torch.equal(a[i].scores, b[i].scores) and torch.equal(a[i].hits, b[i].hits) for i in a
    )


def test_batch_size_changes_nothing(whole):
    assert equal(score(batch_size=4), whole)


def test_a_broken_run_goes_on_where_it_was(whole, tmp_path, monkeypatch):
    calls = []
    real = scoring.score_batch

    def breaking(model, processor, samples, rule):
        calls.append([sample.name for sample in samples])
        if len(calls) == 3:
            raise RuntimeError("killed")
        return real(model, processor, samples, rule)

    monkeypatch.setattr(scoring, "score_batch", breaking)
    with pytest.raises(RuntimeError, match="killed"):
        score(tmp_path / "j")
    assert equal(score(tmp_path / "j"), whole)
    assert calls[2] == calls[3]
    assert equal(score(tmp_path / "j"), whole)
    assert len(calls) == 4


def test_processes_share_the_images_and_one_merges(whole, tmp_path):
    mine = score(tmp_path / "j", rank=1, world_size=2)
    assert list(mine) == [1, 3, 5]
    assert equal(score(tmp_path / "j", rank=0, world_size=2), whole)
    assert len(list((tmp_path / "j").glob("part-*.jsonl"))) == 2


def test_a_journal_may_hold_more_images_than_asked_for(tmp_path):
    score(tmp_path / "j")
    assert list(score(tmp_path / "j", images=4)) == [0, 1, 2, 3]


def test_summary_is_mean_and_standard_error(whole):
    scores = summarise(whole, describe(CHARACTERS, RULE, Workload(), {"model": "m"}))
    total = [
        [sum(float(i.scores[layer, head]) for i in whole.values()) for head in range(8)] for layer in range(6)
    ]
    everything = sum(map(sum, total))
    assert math.isclose(float(scores.table.sum()), 1)
    facts = scores.provenance
    for layer in range(6):
        for head in range(8):
            assert float(scores.table[layer, head]) == pytest.approx(total[layer][head] / everything)
            values = [float(i.scores[layer, head]) for i in whole.values()]
            mean = sum(values) / 6
            error = math.sqrt(sum((v - mean) ** 2 for v in values) / 5 / 6)
            assert facts["standard_error"][layer][head] == pytest.approx(error / (everything / 6))
            assert facts["hits"][layer][head] == sum(int(i.hits[layer, head]) for i in whole.values())
    assert facts["images"] == 6
    assert facts["tokens"] == sum(i.tokens for i in whole.values())
    assert (facts["model"], facts["anchor"], facts["mode"]) == ("m", "characters", "generate")
    assert facts["package_version"]


def test_bad_boxes_are_added_up(whole, tmp_path):
    images = {number: replace(image, bad_boxes={"empty box": number}) for number, image in whole.items()}
    assert summarise(images, {}).provenance["bad_boxes"] == {"empty box": 15}
    assert summarise(whole, {}).provenance["bad_boxes"] == {}


def test_summary_survives_a_file(whole, tmp_path):
    scores = summarise(whole, describe(CHARACTERS, RULE, Workload()))
    scores.save(tmp_path / "s.json")
    loaded = HeadScores.load(tmp_path / "s.json")
    assert loaded == scores
    assert loaded.provenance == scores.provenance


def test_nothing_found_is_an_error():
    empty = ImageScore(3, 9, torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(HeadScoreError, match=r"3 of 9 answer tokens in 1 images"):
        summarise({0: empty}, {})


@pytest.mark.parametrize(
    ("work", "named"),
    [
        ({"images": 0}, "images"),
        ({"images": 41}, "images"),
        ({"seed": -1}, "seed"),
        ({"rank": 1}, "rank"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_workloads_are_refused(work, named):
    with pytest.raises(ConfigError, match=named):
        score(**work)
