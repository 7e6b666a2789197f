import pytest

from sparsemm_eval import HeadScores
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.methods import methods
from sparsemm_eval.methods.head_masking import top_heads


def test_methods_without_scores_need_none(build_wrapper):
    for method in methods().values():
        if "head_scores" not in method.needs:
            wrapper = build_wrapper(f"llava_{method.name}")
            assert wrapper.compression.head_scores is None
            assert wrapper.identity["masked_heads"] == []


def test_head_scores_that_play_no_part_are_refused(build_wrapper, score_files):
    with pytest.raises(ConfigError, match=r"head_scores=.*no part in snapkv"):
        build_wrapper("llava_snapkv", head_scores=score_files["tiny-reader"])


def test_masked_heads_are_the_top_ones(build_wrapper, score_files):
    scores = HeadScores.load(score_files["tiny-reader"])
    wrapper = build_wrapper("llava_mask", head_scores=score_files["tiny-reader"], mask_ratio=0.1)
    assert wrapper.identity["masked_heads"] == [list(head) for head in top_heads(scores, 0.1)]
    assert wrapper.compression.method == "mask"


def test_more_heads_than_there_are(build_wrapper, score_files):
    with pytest.raises(ConfigError, match="mask_ratio"):
        build_wrapper("llava_mask_random", head_scores=score_files["tiny-reader"], mask_ratio=0.7)


def test_numbers_are_no_head_scores(build_wrapper):
    with pytest.raises(ConfigError, match="head_scores"):
        build_wrapper("llava_sparsemm", head_scores=3)
