import pytest

from sparsemm_eval import HeadScores
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.model.masking import top_heads


def test_methods_without_scores_need_none(build_wrapper):
    for name in ("llava_fullkv", "llava_snapkv", "llava_pyramidkv", "llava_adakv", "llava_random"):
        wrapper = build_wrapper(name)
        assert wrapper.compression.head_scores is None
        assert wrapper.masked_heads == []


def test_masked_heads_are_the_top_ones(build_wrapper, score_files):
    scores = HeadScores.load(score_files["tiny-reader"])
    wrapper = build_wrapper("llava_mask", head_scores=score_files["tiny-reader"], mask_ratio=0.1)
    assert wrapper.masked_heads == top_heads(scores, 0.1)
    assert wrapper.identity["masked_heads"] == [list(head) for head in wrapper.masked_heads]
    assert wrapper.compression.method == "fullkv"


def test_more_heads_than_there_are(build_wrapper, score_files):
    with pytest.raises(ConfigError, match="mask_ratio"):
        build_wrapper("llava_mask_random", head_scores=score_files["tiny-reader"], mask_ratio=0.7)


def test_numbers_are_no_head_scores(build_wrapper):
    with pytest.raises(ConfigError, match="head_scores"):
        build_wrapper("llava_sparsemm", head_scores=3)
