"""What can be looked at in a W&B run."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsemm_eval.tracking.media import budget_map, running_scores, worst_first


def samples(rows):
    names = ("task", "doc_id", "score", "identical")
    table = pd.DataFrame(rows, columns=names)
    return table.astype({"identical": "boolean", "score": float})


def test_the_worst_come_first():
    rows = [
        ("a", 0, 1.0, True),
        ("a", 1, 0.0, True),
        ("a", 2, 0.5, False),
        ("a", 3, None, None),
        ("b", 4, 0.0, False),
        ("a", 5, 0.0, False),
    ]
    assert worst_first(samples(rows))["doc_id"].tolist() == [5, 4, 2, 1, 0, 3]
    assert worst_first(samples(rows), 2)["doc_id"].tolist() == [5, 4]


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=50), st.integers(1, 60))
def test_running_scores_against_a_loop(scores, limit):
    rows = [("a", doc, score, None) for doc, score in enumerate(scores)]
    found = running_scores(samples(rows[::-1]), limit)
    known = [score for score in scores if score is not None]
    if not known:
        assert found == []
        return
    for row in found:
        count = row["document"]
        assert row["running_score/a"] == pytest.approx(sum(known[:count]) / count)
    assert found[-1]["document"] == len(known)
    assert len(found) <= limit


def test_the_map_has_a_row_for_each_layer():
    axes = budget_map([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "x").axes[0]
    assert axes.images[0].get_array().shape == (2, 3)
    assert axes.get_title() == "x"
