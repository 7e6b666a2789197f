import json

from sparsemm_eval.files import digest_of
from sparsemm_eval.model_wrappers.records.identity import commit, source_digest, versions


def test_digests_follow_content_not_order():
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_versions_of_what_computes():
    assert set(versions()) == {"sparsemm_eval", "torch", "transformers", "lmms_eval"}


def test_the_source_has_a_digest():
    assert source_digest() == source_digest()
    assert len(source_digest()) == 64


def test_the_commit_is_text_or_none():
    assert commit() is None or len(commit().removesuffix("+changes")) == 40


def test_the_identity_is_json_and_free_of_batch_size(build_wrapper):
    one, other = (build_wrapper("llava_snapkv", batch_size=size).identity for size in (1, 4))
    assert json.loads(json.dumps(one)) == one == other
    assert one != build_wrapper("llava_snapkv", simple=True).identity
