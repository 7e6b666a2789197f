import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch

from sparsemm_eval import CompressionConfig, HeadScores
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.methods import methods
from sparsemm_eval.methods.registry import all_knobs

SCORES = HeadScores(torch.ones(2, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "quest"}, "method='quest'.*one of fullkv, adakv"),
        ({"method": "snapvk"}, r"did you mean 'snapkv'\?"),
        ({"method": 3}, "method=3"),
        ({"budget": 32}, r"budget=32.*window \(32\)"),
        ({"budget": 12.5}, "budget=12.5.*integer"),
        ({"budget": True}, "budget=True"),
        ({"budget": 1e30}, "budget=1e\\+30.*<= 2147483647"),
        ({"window": 0}, "window=0.*>= 1"),
        ({"ratio": 1.5}, r"ratio=1.5.*\[0, 1\]"),
        ({"ratio": float("nan")}, "ratio=nan"),
        ({"kernel_size": 4}, "kernel_size=4.*odd"),
        ({"kernel_size": -1}, "kernel_size=-1"),
        ({"kernel_size": 10**9 + 1}, "kernel_size=1000000001.*4095"),
        ({"pooling": "median"}, "pooling='median'.*avg, max"),
        ({"gqa": "sum"}, "gqa='sum'.*mean, max"),
        ({"surplus": "keep"}, "surplus='keep'.*drop, redistribute"),
        ({"method": "adakv", "adakv_floor": -0.1}, r"adakv_floor=-0.1.*\[0, 1\]"),
        ({"method": "pyramidkv", "pyramid_beta": 0}, "pyramid_beta=0"),
        ({"method": "random", "seed": -1}, "seed=-1"),
        ({"method": "random", "seed": 2**70}, "seed=.*<= 9223372036854775807"),
        ({"method": "streamingllm", "budget": 4}, r"budget=4.*> sinks \(4\)"),
        ({"method": "mask", "mask_ratio": 0}, r"mask_ratio=0.*\(0, 1\)"),
        ({"head_scores": 3}, "head_scores=3"),
        (
            {"score": "attention"},
            "score='attention'.*one of random, recency|score='attention'.*window_attention",
        ),
    ],
)
def test_a_bad_value_is_named_with_what_would_be_right(settings, message):
    with pytest.raises(ConfigError, match=message):
        CompressionConfig(**settings)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("snapkv", {"ratio": 0.1}),
        ("snapkv", {"surplus": "drop"}),
        ("snapkv", {"head_scores": "tiny-reader"}),
        ("sparsemm", {"seed": 1}),
        ("sparsemm", {"mask_ratio": 0.1}),
        ("streamingllm", {"kernel_size": 5}),
        ("fullkv", {"kernel_size": 5}),
        ("fullkv", {"score": "random"}),
        ("mask", {"score": "random"}),
        ("mask", {"mask_seed": 1}),
    ],
)
def test_what_plays_no_part_is_refused(method, settings):
    (name,) = settings
    with pytest.raises(ConfigError, match=rf"{name}=.*expected no value: "):
        CompressionConfig(method, **settings)


def test_an_unknown_knob_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"kernal_size=5.*a knob of sparsemm: .*did you mean 'kernel_size'"):
        CompressionConfig(kernal_size=5)


def test_budget_and_window_may_be_given_to_every_method():
    for method in methods():
        CompressionConfig.fitting(method, budget=64, window=8)
        CompressionConfig(method, budget=64, window=8)
    full = CompressionConfig("fullkv", budget=1, window=32)
    assert not full.evicts
    assert full.digest() == CompressionConfig("fullkv", budget=64).digest()
    streaming = CompressionConfig("streamingllm", budget=16, window=32)
    assert streaming.digest() == CompressionConfig("streamingllm", budget=16).digest()


def test_settings_of_several_methods_are_fitted_to_one():
    common = {"budget": 64, "window": 8, "kernel_size": 3, "ratio": 0.3, "head_scores": SCORES, "seed": 2}
    assert CompressionConfig.fitting("snapkv", **common).to_dict() == {
        "method": "snapkv", "budget": 64, "window": 8, "kernel_size": 3, "pooling": "avg", "gqa": "mean",
    }  # fmt: skip
    assert CompressionConfig.fitting("fullkv", **common).to_dict() == {"method": "fullkv"}
    assert CompressionConfig.fitting("sparsemm", **common).ratio == 0.3
    assert CompressionConfig.fitting("sparsemm", score="random", **common).seed == 2
    with pytest.raises(ConfigError, match="kernels=3"):
        CompressionConfig.fitting("snapkv", kernels=3)


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CompressionConfig().budget = 3


def test_knobs_are_attributes_and_others_are_not():
    assert CompressionConfig("snapkv").kernel_size == 5
    with pytest.raises(AttributeError, match="'ratio' is no knob of method 'snapkv'"):
        _ = CompressionConfig("snapkv").ratio


@pytest.mark.parametrize("method", methods())
def test_every_knob_in_play_changes_the_digest(method):
    others = {
        "budget": 300, "window": 16, "ratio": 0.2, "kernel_size": 7, "pooling": "max", "gqa": "max",
        "seed": 1, "surplus": "redistribute", "adakv_floor": 0.3, "pyramid_beta": 10, "sinks": 2,
        "mask_ratio": 0.2, "mask_mode": "output", "mask_seed": 1, "recent": 8, "last_token": "keep",
        "lag": 64, "lag_ranks": "prompt", "redundancy": ((0.5,),), "mix": "even", "future": 9,
        "covariance": False, "value_norm": False, "epsilon": 0.1, "headkv_beta": 2, "headkv_temp": 2,
        "headkv_per": "query_head", "full_heads": 0.5, "cake_tau1": 1, "cake_tau2": 1, "cake_gamma": 1,
        "cascading": False, "vlcache_heads": False, "vlcache_layers": False, "vlcache_layer_recent": True,
        "prompt_share": 0.5, "lookm_text": "all", "lookm_merge": "off", "kvzip_level": "uniform",
        "fovea_reach": 3, "fovea_diversity": 1, "fovea_visual": 0.1, "fovea_power": 1, "fovea_ratio": 0.2,
    }  # fmt: skip
    assert set(others) - {"budget"} == set(all_knobs())
    base = CompressionConfig(method)
    changes = {name: value for name, value in others.items() if name in base.to_dict()}
    digests = {base.replace(**{name: value}).digest() for name, value in changes.items()}
    assert len(digests | {base.digest()}) == len(changes) + 1


def test_pruning_is_part_of_a_config():
    config = CompressionConfig("snapkv", budget=64, window=8, prune="fastv", prune_layer=3)
    assert config.to_dict() == {
        "method": "snapkv", "budget": 64, "window": 8, "kernel_size": 5, "pooling": "avg", "gqa": "mean",
        "prune": "fastv", "image_share": 0.5, "prune_layer": 3,
    }  # fmt: skip
    assert eval(repr(config)) == config == config.replace()
    plain = config.without_pruning()
    others = [plain, config.replace(image_share=0.2), config.replace(prune_layer=2)]
    assert len({one.digest() for one in (config, *others)}) == 4
    assert plain == CompressionConfig("snapkv", budget=64, window=8)
    fitted = CompressionConfig.fitting("fullkv", prune="divprune", prune_layer=2, image_share=0.3, budget=9)
    assert fitted.to_dict() == {"method": "fullkv", "prune": "divprune", "image_share": 0.3}
    with pytest.raises(ConfigError, match=r"image_share=0.5.*no value without prune="):
        CompressionConfig("fullkv", image_share=0.5)
    with pytest.raises(ConfigError, match=r"prune=3 .*one of divprune, downsample, fastv"):
        CompressionConfig("fullkv", prune=3)


def test_equal_numbers_have_equal_digests():
    one = CompressionConfig(budget=64, ratio=1, window=8)
    same = CompressionConfig(budget=np.int64(64), ratio=np.float64(1.0), window=torch.tensor(8))
    assert one == same
    assert one.digest() == same.digest()
    assert hash(one) == hash(same)
    assert json.dumps(one.to_dict()) == json.dumps(same.to_dict())


def test_copies_are_equal():
    config = CompressionConfig("random", budget=64, seed=3, score="random")
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config == config.replace()
    assert eval(repr(config)) == config
    assert config.replace(score=None).digest() != config.digest()


def test_tables_enter_the_digest_by_content():
    one, same, other = (HeadScores(torch.full((2, 2), x)) for x in (1.0, 1.0, 2.0))
    digests = [CompressionConfig(head_scores=scores).digest() for scores in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]


def test_to_dict_is_json():
    assert json.loads(json.dumps(CompressionConfig(head_scores=SCORES).to_dict()))["head_scores"].startswith(
        "sha256:"
    )
