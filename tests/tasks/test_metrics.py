import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsemm_eval.tasks.pages.metrics import character_accuracy, exact_match


def edit_distance(first, second):
    """Levenshtein distance by its recurrence."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(second, 1):
            previous, row[j] = row[j], min(previous + (left != right), row[j] + 1, row[j - 1] + 1)
    return row[-1]


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        ("12ab34", "12ab34", 1.0),
        (" 12ab34\n", "12ab34", 1.0),
        ("12AB34", "12ab34", 0.0),
        ("12ab3", "12ab34", 0.0),
        ("12ab34 5", "12ab34", 0.0),
        ("", "12ab34", 0.0),
    ],
)
def test_exact_match(answer, truth, score):
    assert exact_match(answer, truth) == score


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        ("AB 12\nCD 34", "AB 12\nCD 34", 1.0),
        ("AB 12 CD 34", "AB 12\nCD 34", 10 / 11),
        ("AB 12", "AB 12\nCD 34", 5 / 11),
        ("", "abcd", 0.0),
        ("abxd", "abcd", 0.75),
        ("abcdxxxx", "abcd", 0.0),
        ("abcd" + "x" * 100, "abcd", 0.0),
    ],
)
def test_character_accuracy(answer, truth, score):
    assert character_accuracy(answer, truth) == pytest.approx(score)


@given(st.text("ab1\n ", max_size=12), st.text("ab1\n ", min_size=1, max_size=12).filter(str.strip))
def test_character_accuracy_is_one_minus_edits_per_character(answer, truth):
    answer_text, truth_text = answer.strip(), truth.strip()
    expected = max(0.0, 1 - edit_distance(answer_text, truth_text) / len(truth_text))
    assert character_accuracy(answer, truth) == pytest.approx(expected)


def test_a_blank_truth_is_refused():
    with pytest.raises(ValueError, match="blank"):
        character_accuracy("text", " \n")
