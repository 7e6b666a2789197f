import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsemm_eval import HeadScores
from sparsemm_eval.errors import HeadScoreError


def test_from_numpy_torch_and_lists():
    table = [[1.0, 0.0], [0.5, 2.0]]
    assert HeadScores.from_array(np.array(table)) == HeadScores.from_array(torch.tensor(table))
    assert HeadScores.from_array(table, model="m").provenance == {"model": "m"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([1.0, 2.0], "expected .layers, query heads."),
        (np.zeros((0, 4)), "expected"),
        ([[0.0, 0.0]], "all zero"),
        ([[1.0, -0.1]], "non-negative"),
        ([[1.0, float("nan")]], "finite"),
    ],
)
def test_tables_that_cannot_be_scores_are_refused(table, message):
    with pytest.raises(HeadScoreError, match=message):
        HeadScores.from_array(table)


def test_saves_and_loads(tmp_path):
    scores = HeadScores.from_array(torch.rand(3, 4, dtype=torch.float64), model="m", images=7)
    path = tmp_path / "deep" / "scores.json"
    scores.save(path)
    loaded = HeadScores.load(path)
    assert loaded == scores
    assert loaded.digest() == scores.digest()
    assert loaded.provenance == {"model": "m", "images": 7}
    assert [p.name for p in path.parent.iterdir()] == ["scores.json"]


def test_reads_the_official_format_as_means(tmp_path):
    path = tmp_path / "official.json"
    path.write_text(json.dumps({"0-0": [0.0, 1.0], "0-1": [2], "1-0": [0], "1-1": [3, 0, 0]}))
    assert HeadScores.load(path).table.tolist() == [[0.5, 2.0], [0.0, 1.0]]


def own(**changes):
    """A file of this package's format with something wrong."""
    record = {
        "format": "sparsemm-eval/head-scores",
        "version": 1,
        "layers": 1,
        "heads": 2,
        "scores": [[1, 2]],
    }
    return json.dumps({**record, **changes})


def test_own_files_may_lack_provenance(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(own())
    assert HeadScores.load(path).table.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "JSON object"),
        ("{}", "JSON object"),
        ('{"0-0": [1], "1-1": [1]}', "2 heads listed, 2 x 2 expected"),
        ('{"0-0": []}', "'0-0'"),
        ('{"a-b": [1]}', "'a-b'"),
        ('{"0-0": ["x"]}', "'0-0'"),
        ('{"format": "other", "version": 1}', "reads 'sparsemm-eval/head-scores' version 1"),
        ('{"format": "sparsemm-eval/head-scores", "version": 9}', "version 9"),
        ('{"format": "sparsemm-eval/head-scores", "version": 1, "scores": "x"}', "'scores'"),
        (own(scores=[[1, 2], [3]]), "'scores'"),
        (own(layers=2), "layers=2, heads=2"),
        (own(layers=True), "layers=True, heads=2"),
        (own(version=True), "version True"),
        (own(scores=[[1, True]]), "'scores' is not"),
        (own(scores=[[1e308, 1e308]]), "add up to infinity"),
        (own(scores=[[1, 1e999]]), "finite"),
        (own(scores=[[1, -2]]), "non-negative"),
        (own(provenance={"hits": [[1, True]]}), "'hits'"),
        (own()[:-1] + ', "layers": 1}', "not JSON .'layers' stands there twice"),
        ('{"0-0": [1], "0-0": [2]}', "'0-0' stands there twice"),
        ('{"0-0": [1], "00-0": [2]}', "1 heads listed, 1 x 1 expected"),
        ('{"0-0": [true]}', "'0-0'"),
        ('{"0-0": [1e308, 1e308]}', "finite"),
        ('{"0-0": [1e308], "0-1": [1e308]}', "add up to infinity"),
        ("[" * 100000, "not JSON"),
        (own(heads=None), "heads=None"),
        (own(provenance=[]), "'provenance' is list"),
        (own(provenance={"hits": [[1]]}), "'hits' is not one number for each"),
        (own(provenance={"bad_boxes": [1]}), "bad_boxes=.* is not valid: expected counts by reason"),
        (own(provenance={"tokens": "x"}), "tokens='x' is not valid: expected an integer >= 0"),
        (own(provenance={"topk": 0}), "topk=0 is not valid"),
        (own(provenance={"models": 3}), "models=3 is not valid: expected a list, each text"),
        (own(provenance={"standard_error": [[0.1, "x"]]}), "'standard_error'"),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, message):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(HeadScoreError, match=message) as caught:
        HeadScores.load(path)
    assert "broken.json" in str(caught.value)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    with pytest.raises(HeadScoreError, match=r"binary.json.*cannot be read"):
        HeadScores.load(tmp_path / "binary.json")


def test_the_weights_that_were_scored(tmp_path):
    for provenance, weights in (
        ({"weights": "sha256:ab", "revision": "c" * 40}, "sha256:ab"),
        ({"revision": "sha256:ab"}, "sha256:ab"),
        ({"revision": "c" * 40}, None),
        ({}, None),
    ):
        assert HeadScores.from_array([[1.0]], **provenance).weights == weights


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(HeadScoreError, match=r"none.json.*No such file"):
        HeadScores.load(tmp_path / "none.json")


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 7]))
def test_group_scores_are_summed(layers, kv_heads, group):
    table = torch.rand(layers, kv_heads * group, dtype=torch.float64) + 0.01
    shares = HeadScores(table).kv_head_shares(kv_heads)
    assert float(shares.sum()) == pytest.approx(1.0)
    for layer in range(layers):
        for head in range(kv_heads):
            members = table[layer, head * group : (head + 1) * group]
            assert float(shares[layer, head]) == pytest.approx(float(members.sum() / table.sum()))


def test_query_heads_that_do_not_group_are_refused():
    with pytest.raises(HeadScoreError, match="5 query heads do not group into 2"):
        HeadScores(torch.ones(1, 5)).kv_head_shares(2)


def test_the_table_is_a_copy():
    table = torch.ones(2, 2)
    scores = HeadScores(table)
    table.zero_()
    assert scores.table.eq(1).all()
