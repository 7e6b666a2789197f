import numpy as np
import pytest

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.model_wrappers.answering.answer import Answer, Measurement
from sparsemm_eval.model_wrappers.records.journal import agreement_with
from sparsemm_eval.model_wrappers.records.totals import Totals
from tests.model_wrappers.helpers import answers_of

MEASURED = Measurement(10, 5.0, np.ones((2, 3), np.int32), 40, 80, 60, 1, 0.0, 100, 0.1, 0.0, None, 0.1)


def loops_distance(left, right):
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


@pytest.mark.parametrize(
    ("left", "right"),
    [([], []), ([1], []), ([1, 2, 3], [1, 3]), ([1, 2, 3, 4], [4, 3, 2, 1]), ([500, 7], [500, 7])],
)
def test_edit_similarity_of_tokens(left, right):
    longest = max(len(left), len(right))
    expected = 1.0 if longest == 0 else 1 - loops_distance(left, right) / longest
    found = agreement_with({"text": "", "tokens": right}, "", left)
    assert found == {"agreement_identical": True, "agreement_edit_similarity": pytest.approx(expected)}


def test_counts_and_shares():
    reference = {"a": {"text": "yes", "tokens": [1, 2]}, "b": {"text": "no", "tokens": [3, 4]}}
    totals = Totals()
    for digest, text, tokens in (("a", "yes", (1, 2)), ("b", "not", (3, 5)), ("c", "what", (1,))):
        answer = Answer("task", 0, 0, text, tokens, MEASURED)
        totals.add(answer, restored=False, agreement=agreement_with(reference.get(digest), text, tokens))
    expected = {
        "agreement_compared": 2,
        "agreement_missing": 1,
        "agreement_identical": 0.5,
        "agreement_edit_similarity": 0.75,
    }
    assert totals.summary().items() >= expected.items()
    assert Totals.merged([totals, totals]).summary()["agreement_edit_similarity"] == 0.75


def test_nothing_to_compare_with_has_counts_only():
    totals = Totals()
    compared = agreement_with(None, "yes", (1,))
    totals.add(Answer("task", 0, 0, "yes", (1,), MEASURED), restored=False, agreement=compared)
    found = {name: value for name, value in totals.summary().items() if name.startswith("agreement")}
    assert found == {"agreement_compared": 0, "agreement_missing": 1}


def run(build_wrapper, documents, name, **given):
    wrapper = build_wrapper(name, **given)
    answers_of(wrapper, documents)
    wrapper.clean()
    return wrapper.run_record


def test_agreement_with_a_fullkv_journal(build_wrapper, documents, tmp_path):
    full, cut = str(tmp_path / "full"), str(tmp_path / "cut")
    run(build_wrapper, documents, "llava_fullkv", journal=full)
    lossless = run(build_wrapper, documents, "llava_snapkv", reference=full, budget=1000, window=8)
    assert lossless["measured"]["agreement_identical"] == 1.0
    assert lossless["measured"]["agreement_edit_similarity"] == 1.0
    record = run(build_wrapper, documents, "llava_snapkv", reference=full, budget=9, window=8, journal=cut)
    assert record["measured"]["agreement_compared"] == len(documents)
    assert record["measured"]["agreement_identical"] < 1.0
    with pytest.raises(ConfigError, match="llava_snapkv"):
        build_wrapper("llava_adakv", reference=cut)


def test_a_reference_without_answers_is_refused(build_wrapper, tmp_path):
    with pytest.raises(ConfigError, match="reference"):
        build_wrapper("llava_snapkv", reference=str(tmp_path))
