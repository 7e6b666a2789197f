"""Parity with what reference code of further methods keeps, where its record is at hand.

docs/method.md says what the record is and how to make one.
"""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from sparsemm_eval.methods import PromptView
from tests.methods.matrix import config_of, positions

FOLDER = Path(os.environ.get("SPARSEMM_GOLDEN") or Path(__file__).parents[3] / "shared" / "golden")
RECORD = FOLDER / "methods.json"

pytestmark = pytest.mark.skipif(not RECORD.is_file(), reason="the reference codes' record is not at hand")


def streamingllm(case):
    return config_of("streamingllm", budget=case["budget"], sinks=case["sinks"])


#: The recorded source -> the config that is to keep the same.
CONFIGS = {"streamingllm": streamingllm, "streamingllm_official": streamingllm}


def cases():
    record = json.loads(RECORD.read_text()) if RECORD.is_file() else []
    return [case for case in record if case["method"] in CONFIGS]


def inputs_of(case, layer):
    """Queries, keys, values and, where recorded, the output projection's weight of a layer."""
    heads, kv_heads = case["heads"], case["heads"] // case["groups"]
    length, dim = case["n"], case["d"]
    generator = torch.Generator().manual_seed(case["seed"] + 1000 * layer)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    query = normal(1, heads, length, dim) * case["scale"]
    key = normal(1, kv_heads, length, dim) * case["scale"]
    value = normal(1, kv_heads, length, dim)
    if case["recipe"] == "structured":
        centre = normal(1, kv_heads, 4, dim)
        key = key + centre[:, :, torch.randint(0, 4, (length,), generator=generator)]
        direction = normal(1, kv_heads, 1, dim) * 0.75
        hot = torch.randperm(length, generator=generator)[: max(3, length // 16)]
        key[:, :, hot] += direction
        query = query + direction.repeat_interleave(case["groups"], 1)
        norms = torch.tensor((0.25, 0.5, 0.75, 1, 1, 1.5, 2.5, 5))
        value = value * norms[torch.randint(0, 8, (1, kv_heads, length, 1), generator=generator)]
    if "layer_gain" in case:
        query = query * case["layer_gain"][layer]
    weight = normal(case["hidden"], heads * dim) if "hidden" in case else None
    return query, key, value, weight


@pytest.mark.parametrize("case", cases(), ids=lambda c: f"{c['method']}-{c['seed']}")
def test_keeps_what_the_reference_keeps(case):
    inputs = [inputs_of(case, layer) for layer in range(case["layers"])]
    content = hashlib.sha256()
    for tensors in inputs:
        for tensor in tensors:
            if tensor is not None:
                content.update(tensor.numpy().tobytes())
    assert content.hexdigest() == case["inputs_sha256"]
    views = [PromptView(query, key, value, output_weight=weight) for query, key, value, weight in inputs]
    assert [layer[0] for layer in positions(CONFIGS[case["method"]](case), views)] == case["kept"]


def test_the_record_is_read():
    assert {case["method"] for case in cases()} == CONFIGS.keys()
