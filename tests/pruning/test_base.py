import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.pruning.base import keep_best, kept_counts, packed
from sparsemm_eval.pruning.registry import pruner_named, pruners, pruning_knobs

ROWS = st.integers(1, 12).flatmap(
    lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=4)
)


def test_every_pruner_has_a_file_of_its_own():
    assert list(pruners()) == ["divprune", "downsample", "fastv"]
    assert set(pruning_knobs()) == {"image_share", "prune_layer"}
    assert [one.name for one in pruners().values() if one.resizes] == ["downsample"]
    with pytest.raises(ConfigError, match=r"prune='fastw'.*did you mean 'fastv'"):
        pruner_named("fastw")


def test_counts_come_from_each_row_alone():
    counts = torch.tensor([0, 1, 10, 575, 2880])
    assert kept_counts(counts, 0.1).tolist() == [0, 1, 1, 58, 288]
    assert kept_counts(counts, 1.0).tolist() == counts.tolist()


@given(ROWS, st.randoms(use_true_random=False))
def test_the_best_images_are_kept(rows, random):
    images = torch.tensor(rows)
    ranks = [[random.choice([0.0, 0.25, 0.5, -1.0]) for _ in row] for row in rows]
    counts = [random.randint(0, sum(row)) for row in rows]
    kept = keep_best(torch.tensor(ranks), images, torch.tensor(counts))
    for row, rank, count, found in zip(rows, ranks, counts, kept.tolist(), strict=True):
        candidates = sorted((i for i, image in enumerate(row) if image), key=lambda i: (-rank[i], i))
        assert [i for i, one in enumerate(found) if one] == sorted(candidates[:count])


@given(ROWS)
def test_kept_tokens_are_pushed_to_the_right_in_their_order(rows):
    index, valid = packed(torch.tensor(rows))
    assert index.shape[1] == max(map(sum, rows))
    for row, where, real in zip(rows, index.tolist(), valid.tolist(), strict=True):
        own = [i for i, one in enumerate(row) if one]
        assert [i for i, one in zip(where, real, strict=True) if one] == own
        assert real == sorted(real)
        assert len(set(where)) == len(where)
