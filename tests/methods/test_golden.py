"""Parity with what the official code keeps on seeded inputs, where its record is at hand.

docs/method.md says what the record is and how to make one.
"""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from sparsemm_eval import HeadScores
from sparsemm_eval.methods import PromptView
from tests.methods.matrix import config_of, positions

FOLDER = Path(os.environ.get("SPARSEMM_GOLDEN") or Path(__file__).parents[3] / "shared" / "golden")
RECORD = FOLDER / "compressors.json"
POOLING = {"avgpool": "avg", "maxpool": "max"}

pytestmark = pytest.mark.skipif(not RECORD.is_file(), reason="the official code's record is not at hand")


def cases():
    return json.loads(RECORD.read_text()) if RECORD.is_file() else []


def inputs_of(case):
    """Queries, keys and the values the record's hash covers, for every layer."""
    shape = (1, case["heads"] // case["groups"], case["n"], case["d"])
    for layer in range(case["layers"]):
        generator = torch.Generator().manual_seed(case["seed"] + 1000 * layer)
        query = torch.randn(1, case["heads"], case["n"], case["d"], generator=generator) * case["scale"]
        key = torch.randn(shape, generator=generator) * case["scale"]
        value = torch.zeros(shape)
        value[..., 0] = torch.arange(case["n"])
        yield query, key, value


@pytest.mark.parametrize("case", cases(), ids=lambda c: f"{c['method']}-{c['seed']}")
def test_keeps_what_the_official_code_keeps(case):
    config = config_of(
        case["method"],
        HeadScores.from_array(case["scores"]) if case["method"] == "sparsemm" else None,
        budget=case["budget"],
        window=case["window"],
        ratio=case["ratio"],
        kernel_size=case["kernel"],
        pooling=POOLING[case["pooling"]],
        gqa=case["gqa"],
    )
    content, views = hashlib.sha256(), []
    for tensors in inputs_of(case):
        for tensor in tensors:
            content.update(tensor.numpy().tobytes())
        views.append(PromptView(*tensors))
    kept = [layer[0] for layer in positions(config, views)]
    assert content.hexdigest() == case["inputs_sha256"]
    assert [[len(head) for head in layer] for layer in kept] == case["lengths"]
    if "kept" in case and case["kept"] is not None:
        assert kept == case["kept"]


def test_the_record_covers_every_method_that_is_claimed():
    found = Counter(case["method"] for case in cases())
    assert found.keys() == {"snapkv", "pyramidkv", "adakv", "sparsemm"}
    assert os.environ.get("SPARSEMM_GOLDEN") or found.total() == 76


def test_reads_the_published_head_scores():
    file = FOLDER / "official_llava-v1.6.json"
    if not file.is_file():
        pytest.skip("the published head scores are not at hand")
    scores = HeadScores.load(file)
    assert (scores.num_layers, scores.num_heads) == (32, 32)
    shares = (scores.table / scores.table.sum()).flatten().sort(descending=True).values
    assert shares[: round(0.05 * 1024)].sum() == pytest.approx(0.56, abs=0.01)
    assert shares[: round(0.10 * 1024)].sum() == pytest.approx(0.77, abs=0.01)
