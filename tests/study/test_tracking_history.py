import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsemm_eval.study.tracking_history import AnswerTail, History, running_scores
from tests.study.tracked_cells import append_answers, append_journal, journal_line, make_cell


@pytest.fixture
def folder(tmp_path):
    return make_cell(tmp_path)[1]


def ids(answers):
    return [answer["doc_id"] for answer in answers]


def nothing_known(task, doc_id, text):
    return None


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_tail_reads_every_answer_once(folder):
    tail = AnswerTail(folder)
    assert tail.read() == []
    append_answers(folder, [3, 1])
    assert tail.read() == [
        {"task": "pages_qa", "doc_id": doc_id, "text": "x", "effective_budget": 32.0, "kv_bytes": 1000}
        for doc_id in (3, 1)
    ]
    assert tail.read() == []
    append_answers(folder, [2])
    assert ids(tail.read()) == [2]


@given(st.lists(st.integers(1, 60), max_size=30))
def test_tail_whatever_the_pieces_in_which_lines_arrive(tmp_path_factory, pieces):
    _, folder = make_cell(tmp_path_factory.mktemp("study"))
    tail, found = AnswerTail(folder), []
    text = "".join(journal_line(doc_id) for doc_id in range(4))
    for size in [*pieces, len(text)]:
        append_journal(folder, text[:size])
        text = text[size:]
        found += ids(tail.read())
    assert found == [0, 1, 2, 3]


def test_tail_counts_an_answer_once_whatever_file_it_is_in(folder):
    tail = AnswerTail(folder)
    append_answers(folder, [0, 1])
    append_journal(folder, journal_line(1) + journal_line(2), rank=1)
    assert ids(tail.read()) == [0, 1, 2]


def test_tail_goes_on_after_a_torn_line_was_cut(folder):
    tail = AnswerTail(folder)
    append_answers(folder, [0])
    append_journal(folder, journal_line(1)[:40])
    assert ids(tail.read()) == [0]
    path = folder / "journal" / "pages_qa" / "rank-00000.jsonl"
    path.write_text(journal_line(0))
    append_answers(folder, [1])
    assert ids(tail.read()) == [1]


def test_tail_begins_anew_with_another_run_in_the_folder(folder):
    import os

    tail = AnswerTail(folder)
    append_answers(folder, [0, 1], run="a" * 64)
    assert ids(tail.read()) == [0, 1]
    append_answers(folder, [0], run="b" * 64)
    os.utime(folder / "journal" / "runs" / f"{'a' * 64}.json", (0, 0))
    assert ids(tail.read()) == [0]
    assert tail.run == "b" * 64


def test_tail_of_a_cell_without_a_journal_reads_the_latest_figures(folder):
    stats = folder / "stats"
    stats.mkdir()
    line = {"task": "t", "doc_id": 4, "repeat": 0, "answer": "yes", "effective_budget": 2.5, "kv_bytes": 7}
    old = stats / "20260101T000000_llava_snapkv_aaa_sparsemm_samples.rank0.jsonl"
    new = stats / "20260102T000000_llava_snapkv_aaa_sparsemm_samples.rank1.jsonl"
    old.write_text(json.dumps(line) + "\n")
    new.write_text(json.dumps(line | {"doc_id": 5}) + "\n" + json.dumps(line)[:9])
    expected = {"task": "t", "doc_id": 5, "text": "yes", "effective_budget": 2.5, "kv_bytes": 7}
    assert AnswerTail(folder).read() == [expected]


def test_a_damaged_journal_is_not_passed_over(folder):
    append_journal(folder, "no json\n")
    with pytest.raises(ValueError, match="Expecting value"):
        AnswerTail(folder).read()


def test_point_has_means_rate_and_scores(folder):
    clock = Clock()
    history = History(folder, lambda task, doc_id, text: doc_id % 2, clock=clock)
    assert history.point() is None
    append_answers(folder, [0], budget=10.0, kv_bytes=100)
    append_answers(folder, [1, 3], budget=40.0, kv_bytes=400)
    clock.now = 2.0
    assert history.point() == {
        "progress/samples": 3,
        "progress/effective_budget": 30.0,
        "progress/kv_bytes": 300.0,
        "progress/samples_per_second": 1.5,
        "progress/score/pages_qa": pytest.approx(2 / 3),
    }
    assert history.point() is None
    append_answers(folder, [2])
    clock.now = 12.0
    assert history.point()["progress/samples_per_second"] == pytest.approx(0.1)


def test_point_without_scores_has_none(folder):
    append_answers(folder, [0])
    assert not any(key.startswith("progress/score") for key in History(folder, nothing_known).point())


def test_answers_of_an_earlier_session_count_but_are_no_speed(folder):
    append_answers(folder, range(5))
    clock = Clock()
    history = History(folder, nothing_known, logged=5, clock=clock)
    assert history.point() is None
    append_answers(folder, [5])
    clock.now = 4.0
    point = history.point()
    assert (point["progress/samples"], point["progress/samples_per_second"]) == (6, 0.25)


def test_answers_that_no_session_logged_are_logged_first(folder):
    append_answers(folder, range(5))
    point = History(folder, nothing_known, logged=3).point()
    assert point["progress/samples"] == 5
    assert "progress/samples_per_second" not in point


def frame(rows):
    return pd.DataFrame(rows, columns=["task", "doc_id", "score"])


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.floats(0, 1)), unique_by=lambda r: r[:2])
)
def test_running_scores_are_means_over_the_first_documents(rows):
    found = {(row["document"], key): row[key] for row in running_scores(frame(rows)) for key in row}
    for task in "ab":
        ordered = [score for name, _, score in sorted(rows) if name == task]
        for count in range(1, len(ordered) + 1):
            mean = sum(ordered[:count]) / count
            assert found.pop((count, f"running_score/{task}")) == pytest.approx(mean)
    assert all(key == "document" for _, key in found)


def test_running_scores_leave_out_samples_without_a_score():
    rows = [("a", 0, 1.0), ("a", 1, None), ("a", 2, 0.0)]
    assert running_scores(frame(rows)) == [
        {"document": 1, "running_score/a": 1.0},
        {"document": 2, "running_score/a": 0.5},
    ]
    assert running_scores(frame([("a", 0, None)])) == []
    assert running_scores(pd.DataFrame()) == []


@pytest.mark.parametrize("count", [1, 9, 10, 11, 99, 1000])
def test_running_scores_are_bounded_and_end_with_the_last_document(count):
    points = running_scores(frame([("a", doc_id, 1.0) for doc_id in range(count)]), limit=10)
    documents = [point["document"] for point in points]
    assert documents == sorted(set(documents))
    assert len(documents) == count if count <= 10 else 5 <= len(documents) <= 10
    assert documents[-1] == count
