"""The benchmark of head scoring: both ways give the same scores."""

from __future__ import annotations

import json
import math

import pytest
from typer.testing import CliRunner

from sparsemm_eval.bench.commands import app
from sparsemm_eval.bench.head_scoring import Row, measure, score_literally
from sparsemm_eval.bench.random_models import random_llava_next_7b
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.anchors.documents import DOCUMENTS
from sparsemm_eval.heads.scoring.batch_scores import ScoringRule
from tests.heads.scoring.reference import literal_scores
from tests.heads.scoring.samples import CHARACTERS, character_sample, processor_of
from tests.heads.scoring.test_batch_scores import eager
from tests.tiny_models import IMAGE_FAMILIES, model_of

RULES = [
    ScoringRule("generate", "unique", max_new_tokens=6),
    ScoringRule("teacher", "unique", topk=2, include_base=True),
]


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.mode)
def test_both_ways_agree(family, rule):
    rows = measure(model_of(family), processor_of(family), CHARACTERS, rule, (1, 2), 3, 1)
    assert [(row.mode, row.batch_size, row.images, row.literal_images) for row in rows] == [
        (rule.mode, size, 3, 1) for size in (1, 2)
    ]
    assert all(row.same for row in rows)
    assert all(
        row.ours > 0 and row.literal > 0 and math.isclose(row.ratio, row.literal / row.ours) for row in rows
    )


def test_the_literal_way_equals_the_tests_own():
    model, processor, sample = model_of("tiny-reader"), processor_of("tiny-reader"), character_sample(0, 0)
    rule = ScoringRule("generate", "unique", topk=12, include_base=True, max_new_tokens=10)
    found = score_literally(model, processor, sample, rule)
    assert model.config.get_text_config()._attn_implementation == "sdpa"
    with eager(model):
        scores, hits, answer = literal_scores(model, processor, sample, rule)
    assert found.hits.tolist() == hits
    assert found.answer_tokens == len(answer)
    for layer, row in enumerate(scores):
        assert found.scores[layer].tolist() == pytest.approx(row)
    assert found.hits.sum() > 0


def test_without_the_literal_way():
    [row] = measure(model_of("tiny-reader"), processor_of("tiny-reader"), CHARACTERS, RULES[1], (2,), 2, 0)
    assert row.same is None
    assert math.isnan(row.ratio)


def invoke(*arguments):
    return CliRunner().invoke(app, ["heads", *arguments], catch_exceptions=False)


def test_command():
    common = ("--images", "2", "--literal-images", "1", "--batch-sizes", "2", "--modes", "teacher")
    [row] = json.loads(invoke(*common, "--json").stdout)["rows"]
    assert (row["mode"], row["same"]) == ("teacher", True)
    assert "same scores" in invoke(*common).stdout
    with pytest.raises(ConfigError, match="literal_images=3"):
        invoke("--images", "2", "--literal-images", "3")


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--modes", "guess", "mode='guess'"),
        ("--anchor", "books", "anchor='books'"),
        ("--dtype", "int8", "dtype='int8'"),
        ("--device", "tpu", "device='tpu'"),
        ("--images", str(10**30), "images="),
        ("--batch-sizes", "0", "batch_sizes='0'"),
    ],
)
def test_wrong_values_are_refused_before_a_model_is_loaded(option, value, named, monkeypatch):
    monkeypatch.setattr("sparsemm_eval.model.checkpoint.load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=named):
        invoke(option, value)


def test_ratio():
    assert Row("teacher", 1, 4, 2, ours=0.5, literal=10.0, same=True).ratio == 20


@pytest.mark.slow
def test_the_large_shape_can_be_scored():
    import torch

    model, processor = random_llava_next_7b("meta", torch.bfloat16)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert 7.0e9 < parameters < 7.2e9
    config = model.config.get_text_config()
    assert (config.num_hidden_layers, config.num_attention_heads) == (32, 32)
    # many CPUs take minutes for the vision tower in 16 bits
    model, processor = random_llava_next_7b("cpu", torch.float32, layers=1)
    [row] = measure(model, processor, DOCUMENTS, ScoringRule("teacher", "unique"), (1,), 1, 0)
    assert row.ours > 0
