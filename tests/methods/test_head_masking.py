import pytest
import torch

from sparsemm_eval import CompressionConfig, HeadScores
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.methods import method_named
from sparsemm_eval.methods.head_masking import count_of, random_heads, top_heads


def test_top_heads_come_best_first():
    scores = HeadScores(torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3]]))
    assert top_heads(scores, 0.5) == [(0, 1), (1, 0), (1, 2)]
    assert top_heads(scores, 0.0) == []


def test_random_heads_are_seeded_and_exclude():
    exclude = [(0, 0), (1, 1)]
    drawn = random_heads(4, 8, 0.5, seed=1, exclude=exclude)
    assert drawn == random_heads(4, 8, 0.5, seed=1, exclude=exclude)
    assert drawn != random_heads(4, 8, 0.5, seed=2, exclude=exclude)
    assert len(set(drawn)) == 16
    assert not set(drawn) & set(exclude)


def test_too_many_random_heads_are_refused():
    with pytest.raises(ConfigError, match=r"mask_ratio=0.9"):
        random_heads(2, 5, 0.9, seed=0, exclude=[(0, 0), (0, 1)])


@pytest.mark.parametrize("share", [-0.1, 1.1, "half", True])
def test_a_share_outside_zero_to_one_is_refused(share):
    with pytest.raises(ConfigError, match="mask_ratio"):
        count_of(share, 10)


def test_a_small_share_masks_at_least_one_head():
    assert count_of(0.001, 48) == 1


def test_the_number_of_heads_is_rounded():
    assert [count_of(share, 1024) for share in (0.02, 0.05, 0.1, 0.15)] == [20, 51, 102, 154]


def test_the_methods_mask_the_best_heads_and_none_of_them():
    scores = HeadScores(torch.rand(4, 6, generator=torch.Generator().manual_seed(3)))
    visual = CompressionConfig("mask", mask_ratio=0.25, head_scores=scores)
    best = method_named("mask").mask(scores, visual)
    assert best == top_heads(scores, 0.25)
    assert len(best) == 6
    draws = []
    for seed in range(3):
        config = CompressionConfig("mask_random", mask_ratio=0.25, mask_seed=seed, head_scores=scores)
        drawn = config.rule.mask(scores, config)
        assert drawn == random_heads(4, 6, 0.25, seed, exclude=best)
        draws.append(tuple(drawn))
    assert len(set(draws)) == 3
