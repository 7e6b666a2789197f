"""Figures of evidence recall, against loops over heads."""

import numpy as np
import pytest

from sparsemm_eval.heads.scores.lookup import resolve
from sparsemm_eval.heads.scores.recall import FIGURES, known_shares, recall_figures
from sparsemm_eval.model.fingerprint import local_fingerprint


def test_figures_are_those_of_loops():
    rng = np.random.default_rng(0)
    shares = rng.random((6, 8)) ** 4
    shares /= shares.sum()
    kept = rng.integers(8, 100, (6, 8))
    found = rng.integers(0, 11, (6, 8))
    figures = recall_figures(found, 10, kept, 100, 8, shares)
    heads = [(layer, head) for layer in range(6) for head in range(8)]
    visual = sorted(heads, key=lambda head: -shares[head])[:2]  # 5 % of 48 heads
    mean = {
        "visual": [found[h] / 10 for h in visual],
        "others": [found[h] / 10 for h in heads if h not in visual],
    }
    assert figures == {
        "evidence_recall": pytest.approx(sum(shares[h] * found[h] / 10 for h in heads)),
        "evidence_chance": pytest.approx(sum(shares[h] * (kept[h] - 8) / 92 for h in heads)),
        "evidence_recall_visual": pytest.approx(sum(mean["visual"]) / 2),
        "evidence_recall_others": pytest.approx(sum(mean["others"]) / 46),
        "evidence_recall_mean": pytest.approx(sum(found[h] / 10 for h in heads) / 48),
    }


@pytest.mark.parametrize(("prompt", "window"), [(40, 8), (6, 8), (40, 0)])
def test_a_full_cache_recalls_everything_and_so_does_chance(prompt, window):
    kept, shares = np.full((2, 3), prompt), np.full((2, 3), 1 / 6)
    figures = recall_figures(np.full((2, 3), 4), 4, kept, prompt, window, shares)
    assert figures == pytest.approx(dict.fromkeys(FIGURES, 1.0))


def test_without_head_scores_only_the_plain_mean_is_known():
    figures = recall_figures(np.array([[1, 3]]), 4, np.array([[5, 5]]), 10, 0, None)
    assert figures == dict.fromkeys(FIGURES) | {"evidence_recall_mean": 0.5}


def test_a_model_of_one_head_has_no_others():
    one = np.ones((1, 1))
    assert recall_figures(one, 1, one, 2, 0, one)["evidence_recall_others"] is None


def test_shares_are_found_by_name_for_the_weights_they_were_made_for(log):
    table = resolve("tiny-reader-mistral").table.numpy()
    weights = local_fingerprint("tiny-reader-mistral")["weights"]
    layers, heads = table.shape
    shares = known_shares("tiny-reader-mistral", weights, layers, heads, 2)
    grouped = table.reshape(layers, 2, heads // 2).sum(-1)
    np.testing.assert_allclose(shares, grouped / grouped.sum())
    assert known_shares("tiny-reader-mistral", "sha256:other", layers, heads, 2) is None
    assert known_shares("tiny-reader-mistral", weights, layers + 1, heads, 2) is None
    assert known_shares("nobody/knows-it", weights, layers, heads, 2) is None
    assert sum("evidence recall is not weighted by head scores" in line for line in log) == 3
