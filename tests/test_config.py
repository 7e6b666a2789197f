import dataclasses
import json

import pytest
import torch

from sparsemm_eval import CompressionConfig, HeadScores
from sparsemm_eval.errors import ConfigError


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"method": "h2o"}, "method='h2o'.*fullkv, snapkv"),
        ({"budget": 32}, r"budget=32.*window \(32\)"),
        ({"budget": 12.5}, "budget=12.5.*integer"),
        ({"budget": True}, "budget=True"),
        ({"window": 0}, "window=0.*>= 1"),
        ({"ratio": 1.5}, r"ratio=1.5.*\[0, 1\]"),
        ({"ratio": float("nan")}, "ratio=nan"),
        ({"kernel_size": 4}, "kernel_size=4.*odd"),
        ({"kernel_size": -1}, "kernel_size=-1"),
        ({"pooling": "median"}, "pooling='median'.*avg, max"),
        ({"gqa": "sum"}, "gqa='sum'.*mean, max"),
        ({"surplus": "keep"}, "surplus='keep'.*drop, redistribute"),
        ({"adakv_floor": -0.1}, r"adakv_floor=-0.1.*\[0, 1\]"),
        ({"pyramid_beta": 0}, "pyramid_beta=0"),
        ({"seed": -1}, "seed=-1"),
        ({"head_scores": 3}, "head_scores=3"),
    ],
)
def test_a_bad_value_is_named_with_what_would_be_right(knobs, message):
    with pytest.raises(ConfigError, match=message):
        CompressionConfig(**knobs)


def test_fullkv_ignores_the_budget():
    assert not CompressionConfig(method="fullkv", budget=1).compresses


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CompressionConfig().budget = 3


def test_every_knob_changes_the_digest():
    base = CompressionConfig()
    changes = {
        "method": "snapkv",
        "budget": 300,
        "window": 16,
        "ratio": 0.2,
        "kernel_size": 7,
        "pooling": "max",
        "gqa": "max",
        "surplus": "redistribute",
        "head_scores": "x",
        "adakv_floor": 0.3,
        "pyramid_beta": 10,
        "seed": 1,
    }
    assert set(changes) == {field.name for field in dataclasses.fields(CompressionConfig)}
    digests = {base.replace(**{name: value}).digest() for name, value in changes.items()}
    assert len(digests | {base.digest()}) == len(changes) + 1


def test_tables_enter_the_digest_by_content():
    one, same, other = (HeadScores(torch.full((2, 2), x)) for x in (1.0, 1.0, 2.0))
    digests = [CompressionConfig(head_scores=scores).digest() for scores in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]


def test_to_dict_is_json():
    config = CompressionConfig(head_scores=HeadScores(torch.ones(2, 2)))
    assert json.loads(json.dumps(config.to_dict()))["head_scores"].startswith("sha256:")
