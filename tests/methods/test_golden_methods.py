"""Parity with what reference code of further methods keeps, where its record is at hand.

docs/method.md says what the record is and how to make one. ``SPARSEMM_GOLDEN_METHODS`` names another record
in the same format.
"""

import hashlib
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsemm_eval import HeadScores
from sparsemm_eval.methods import PromptView, Rotation, keep
from sparsemm_eval.methods.cake import preferences_of
from sparsemm_eval.methods.prompt_attention import paid_by
from sparsemm_eval.methods.vlcache import sparsities_of
from tests.methods.matrix import config_of

FOLDER = Path(os.environ.get("SPARSEMM_GOLDEN") or Path(__file__).parents[3] / "shared" / "golden")
RECORD = Path(os.environ.get("SPARSEMM_GOLDEN_METHODS") or FOLDER / "methods.json")
CASES = json.loads(RECORD.read_text()) if RECORD.is_file() else []

pytestmark = pytest.mark.skipif(not CASES, reason="the reference codes' record is not at hand")

MIX = {"headwisemixkv": "headwise", "mixkv": "even", "keydiff": "diversity", "vnorm": "norm"}


def mixkv(case):
    scores = HeadScores.from_array(case["scores"]) if case["base"] == "sparsemm" else None
    return config_of(
        case["base"],
        scores,
        score="mixkv",
        window=case["window"],
        kernel_size=case["kernel"],
        redundancy=case["redundancy"],
        mix=MIX[case["select"]],
        ratio=case.get("sparsemm_ratio", 0.1),
        budget=case["budget"],
    )


def lagkv(case):
    ranks = "prompt" if case.get("cross_scoring") else "partition"
    return config_of("lagkv", budget=case["budget"], sinks=case["sinks"], lag=case["lag"], lag_ranks=ranks)


def criticalkv(case):
    settings = {"window": case["window"], "kernel_size": case["kernel"]}
    return config_of(case["method"], budget=case["budget"], **settings)


def headkv(case):
    return config_of(
        "headkv",
        HeadScores.from_array(case["scores"]),
        budget=case["budget"],
        window=case["window"],
        kernel_size=case["kernel"],
        headkv_beta=case["beta"],
        headkv_temp=case["temp"],
        headkv_per=case.get("per", "kv_head"),
    )


def expected_attention(case):
    names = {"use_covariance": "covariance", "use_vnorm": "value_norm", "epsilon": "epsilon"}
    settings = {ours: case[theirs] for theirs, ours in names.items()}
    return config_of(
        "expected_attention", budget=case["budget"], sinks=case["sinks"], future=case["future"], **settings
    )


def cake(case):
    settings = {f"cake_{name}": case[name] for name in ("tau1", "tau2", "gamma")}
    window = case["window"]
    return config_of("cake", budget=case["budget"], window=window, cascading=case["cascading"], **settings)


def kvzip(case):
    settings = {"kvzip_level": case["level"], "prompt_share": case["keep_ratio"]}
    return config_of("kvzip", budget=case["budget"], sinks=case["sinks"], **settings)


def vlcache(case):
    return config_of(
        "vlcache",
        budget=case["budget"],
        window=1,
        prompt_share=case["alpha"],
        vlcache_heads=case["head_adaptive"],
        vlcache_layers=case["layer_adaptive"],
        vlcache_layer_recent=case["layer_windows"],
    )


def lookm(case, text="all"):
    recent = int(case["n"] * case["recent_ratio"])
    return config_of("lookm", budget=case["budget"], recent=max(recent, 1), lookm_text=text)


#: The recorded source -> the config that is to keep the same.
CONFIGS = {
    "mixkv": mixkv,
    "streamingllm": lambda case: config_of("streamingllm", budget=case["budget"], sinks=case["sinks"]),
    "streamingllm_official": lambda case: CONFIGS["streamingllm"](case),
    "tova": lambda case: config_of("tova", budget=case["budget"], last_token="keep"),
    "tova_official": lambda case: config_of("tova", budget=case["budget"]),
    "knorm": lambda case: config_of("knorm", budget=case["budget"]),
    "keydiff": lambda case: config_of("keydiff", budget=case["budget"]),
    "lagkv": lagkv,
    "lagkv_official": lagkv,
    "observed_attention": lambda case: config_of("observed_attention", budget=case["budget"]),
    "h2o": lambda case: config_of("h2o", budget=case["budget"], recent=case["recent"]),
    "criticalkv": criticalkv,
    "criticaladakv": criticalkv,
    "headkv": headkv,
    "expected_attention": expected_attention,
    "cake": cake,
    "kvzip": kvzip,
    "lookm": lookm,
    "lookm_effivlm": lambda case: lookm(case, "first"),
    "vlcache": vlcache,
}


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


def digest_of(inputs):
    content = hashlib.sha256()
    for tensors in inputs:
        for tensor in tensors:
            if tensor is not None:
                content.update(tensor.numpy().tobytes())
    return content.hexdigest()


def images_of(case):
    """bool [1, n]: which positions the case says are image tokens."""
    mask = torch.zeros(1, case["n"], dtype=torch.bool)
    for place, position in enumerate(case.get("image_position", ())):
        first = position + (case["image_tokens"] - 1) * place
        mask[:, first : first + case["image_tokens"]] = True
    for first, last in case.get("images", ()):
        mask[:, first:last] = True
    if "post_vision" in case:
        mask[:, case["n"] - case["post_vision"] - 1] = True
    return mask


def angles(case, positions):
    """cos, sin [1, P, D] of RoPE at positions, in the half-split convention, float64."""
    frequency = case["theta"] ** (-torch.arange(0, case["d"], 2, dtype=torch.float64) / case["d"])
    angle = (positions[:, None] * frequency).repeat(1, 2)[None]
    return angle.cos(), angle.sin()


def views_of(case, inputs, dtype):
    images, received = images_of(case), None
    views = [[part if part is None else part.to(dtype) for part in layer] for layer in inputs]
    if case["method"] == "kvzip":  # the recorded keys end with the repeated context
        length = case["n"] - case["repeat"]
        received = torch.stack(
            [
                paid_by(PromptView(query, key), length, case["n"], "max")[None, :, :length]
                for query, key, *_ in views
            ]
        )
        views = [[q[:, :, :length], k[:, :, :length], v[:, :, :length], w] for q, k, v, w in views]
        images = images[:, :length]
    views = [PromptView(q, k, v, output_weight=w, images=images, received=received) for q, k, v, w in views]
    if case["method"] == "expected_attention":  # the recorded queries are those before RoPE
        cos, sin = angles(case, torch.arange(case["n"]))

        def future(count):
            means = angles(case, torch.arange(case["n"], case["n"] + count))
            return tuple(part.mean(1) for part in means)

        for place, view in enumerate(views):
            left, right = view.query.double().chunk(2, -1)
            turned = view.query.double() * cos + torch.cat([-right, left], -1) * sin
            rotation = Rotation(cos, sin, future)
            views[place] = replace(view, query=turned.to(dtype), rotation=rotation)
    return views


def kept_by(config, views):
    """Sorted positions of the last row, counted from its first token: [layer][head]."""
    padding = 0 if views[0].valid is None else int((~views[0].valid[-1]).sum())
    return [
        [(head.nonzero().flatten() - padding).tolist() for head in mask[-1]] for mask in keep(config, views)
    ]


@pytest.mark.parametrize("form", ["float32", "float64", "batch"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['method']}-{c['seed']}")
def test_keeps_what_the_reference_keeps(case, form):
    inputs = [inputs_of(case, layer) for layer in range(case["layers"])]
    assert digest_of(inputs) == case["inputs_sha256"]
    config = CONFIGS[case["method"]](case)
    views = views_of(case, inputs, torch.float64 if form == "float64" else torch.float32)
    if form == "batch":
        views = [beside_a_longer_one(view) for view in views]
    assert kept_by(config, views) == case["kept"]
    if "merged_sum" in case and form == "float32":
        assert merged_sums(config, views) == pytest.approx(
            [x for layer in case["merged_sum"] for head in layer for x in head], rel=1e-4, abs=1e-4
        )


def beside_a_longer_one(view):
    """The case as the second row of a batch, behind left padding of 9 tokens."""
    pad = 9

    def widened(tensor, batch=0):
        """[.., 1, .., n, ..] -> two rows; the first is the case with its first tokens once more in front."""
        place = tensor.ndim - 2 if tensor.ndim > 2 else tensor.ndim - 1
        longer = torch.cat([tensor.narrow(place, 0, pad).flip(place), tensor], place)
        junk = torch.cat([tensor.narrow(place, 0, pad) * 3, tensor], place)
        return torch.cat([longer, junk], batch)

    length = view.length
    everything = torch.arange(length + pad) >= torch.tensor([[0], [pad]])
    rotation = view.rotation
    if rotation is not None:
        cos, sin = (torch.cat([part[:, :pad], part], 1) for part in (rotation.cos, rotation.sin))
        rotation = Rotation(cos, sin, rotation.future)
    images = torch.cat([torch.zeros(1, pad, dtype=torch.bool), view.images], 1).repeat(2, 1)
    return replace(
        view,
        query=widened(view.query),
        key=widened(view.key),
        value=widened(view.value),
        received=None
        if view.received is None
        else torch.stack([widened(layer[:, :, :, None])[..., 0] for layer in view.received]),
        valid=everything,
        images=images,
        rotation=rotation,
    )


def merged_sums(config, views):
    """Sums of k, k², v and v² of the kept entries after merging, [layer][head][4] in a row."""
    found = []
    for layer, (view, kept) in enumerate(zip(views, keep(config, views), strict=True)):
        view = replace(view, config=config, layer=layer, layers=len(views))
        for entries in zip(*config.rule.merge(view, kept), kept, strict=True):
            for key, value, mask in zip(*entries, strict=True):
                key, value = key[mask], value[mask]
                found += [float(x.sum()) for x in (key, key**2, value, value**2)]
    return found


def test_statistics_of_layers_are_those_of_the_reference():
    rules = {"cake": ("layer_preference", preferences_of), "vlcache": ("sparsity", sparsities_of)}
    for case in CASES:
        if case["method"] not in rules:
            continue
        name, rule = rules[case["method"]]
        config = CONFIGS[case["method"]](case)
        inputs = [inputs_of(case, layer) for layer in range(case["layers"])]
        views = views_of(case, inputs, torch.float32)
        found = [rule(replace(view, config=config))[0] for view in views]
        assert found == pytest.approx(case[name], rel=1e-3, abs=1e-6)


def test_every_method_of_the_record_is_claimed():
    assert {case["method"] for case in CASES} <= CONFIGS.keys()
    assert os.environ.get("SPARSEMM_GOLDEN_METHODS") or {c["method"] for c in CASES} == CONFIGS.keys()
    assert all(math.isfinite(case["budget"]) for case in CASES)
