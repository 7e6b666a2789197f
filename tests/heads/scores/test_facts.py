"""Facts, agreement and pictures of tables."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from sparsemm_eval.errors import ConfigError, HeadScoreError
from sparsemm_eval.heads.figures import plots
from sparsemm_eval.heads.scores import facts as table_facts
from sparsemm_eval.heads.scores.facts import agreement
from sparsemm_eval.heads.scores.table import HeadScores, import_official

TABLE = HeadScores.from_array(
    [[0.0, 4.0, 0.001], [3.0, 2.0, 1.0]], model="m", images=2, tokens=10, topk=2, hits=[[0, 4, 1], [3, 2, 1]]
)


def test_facts():
    assert table_facts.share_of_top(TABLE, 0.01) == pytest.approx(4 / 10.001)
    assert table_facts.share_of_top(TABLE, 0.5) == pytest.approx(9 / 10.001)
    assert table_facts.layer_shares(TABLE) == pytest.approx([4.001 / 10.001, 6 / 10.001])
    assert table_facts.noteworthy_heads(TABLE) == 4
    assert TABLE.best_heads(2) == [(0, 1), (1, 0)]
    assert table_facts.hit_rate(TABLE, (1, 0)) == 3 / 20
    assert table_facts.hit_rate(HeadScores.from_array([[1.0]]), (0, 0)) is None


def test_lines_name_the_best_heads_and_leave_tables_out():
    text = "\n".join(table_facts.lines(TABLE, top=1))
    assert "layer 0 head 1: 4, looked at its token 20.0% of the time" in text
    assert "top 5% of heads (1): 40.0% of the score" in text
    assert "model m" in text
    assert "hits" not in text
    assert "head 0:" not in text


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.randoms())
def test_agreement_equals_scipy(values, random):
    others = [random.randint(0, 5) for _ in values]
    a, b = torch.tensor(values).double(), torch.tensor(others).double()
    if len(set(values)) > 1 and len(set(others)) > 1:
        found = agreement(HeadScores(a[None]), HeadScores(b[None]))
        assert found.spearman == pytest.approx(stats.spearmanr(values, others).statistic)
        dot = sum(x * y for x, y in zip(values, others, strict=True))
        norms = math.sqrt(sum(x * x for x in values) * sum(y * y for y in others))
        assert found.cosine == pytest.approx(dot / norms)


def test_the_rank_correlation_with_a_constant_table_is_no_number():
    constant, other = HeadScores(torch.ones(2, 2)), HeadScores(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    for found in (agreement(constant, other), agreement(other, constant), agreement(constant, constant)):
        assert math.isnan(found.spearman)
        assert found.cosine > 0.9


def test_overlap_of_the_best():
    first = torch.arange(40.0).view(4, 10)
    second = first.clone()
    second[3, 9] = 0  # of the two best, one is left
    found = agreement(HeadScores(first), HeadScores(second))
    assert found.overlap == 0.5
    assert agreement(HeadScores(first), HeadScores(first)).overlap == 1.0
    with pytest.raises(HeadScoreError, match="use scores made for this model"):
        agreement(HeadScores(first), HeadScores(first.view(5, 8)))


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_pictures(tmp_path, ending):
    path, pair = tmp_path / f"map{ending}", tmp_path / "new" / f"pair{ending}"
    plots.save_head_map(TABLE, path, "a title")
    once = path.read_bytes()
    plots.save_head_map(TABLE, path, "a title")
    assert path.read_bytes() == once
    plots.save_comparison(TABLE, TABLE, ("one", "two"), pair)
    if ending == ".png":
        assert min(Image.open(path).size) > 150
        # the best head's cell is the only one in the brightest colour, apart from the colour bar
        colours = Image.open(path).convert("RGB").getdata()
        assert (253, 231, 36) in set(colours)
    else:
        assert "<svg" in path.read_text()
        assert "<svg" in pair.read_text()


def test_pictures_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"\.png, \.svg"):
        plots.save_head_map(TABLE, tmp_path / "map.bmp")


def test_import_of_the_official_format(tmp_path):
    path = tmp_path / "official.json"
    path.write_text(json.dumps({"0-0": [1.0, 3.0], "0-1": [0.0, 0.5], "1-0": [0, 0], "1-1": [4, 4]}))
    scores = import_official(path, "org/model")
    assert scores.table.tolist() == [[2.0, 0.25], [0.0, 4.0]]
    assert scores.provenance["images"] == 2
    assert scores.provenance["model"] == "org/model"
    assert scores.provenance["standard_error"] == [[1.0, 0.25], [0.0, 0.0]]
    scores.save(tmp_path / "own.json")
    with pytest.raises(HeadScoreError, match="already"):
        import_official(tmp_path / "own.json")
    path.write_text(json.dumps({"0-0": [1.0, 3.0], "0-1": [2.0]}))
    assert "images" not in import_official(path).provenance
