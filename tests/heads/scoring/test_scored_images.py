"""The journal: what a killed run leaves is used, what does not belong is refused."""

from __future__ import annotations

import pytest
import torch

from sparsemm_eval.errors import HeadScoreError, JournalError
from sparsemm_eval.files import remove_records
from sparsemm_eval.heads.scoring.batch_scores import ImageScore
from sparsemm_eval.heads.scoring.score_heads import KIND, ScoredImages

RUN = {"model": "m", "seed": 0}


def image(number):
    scores = torch.tensor([[number / 3, 0.1], [0.0, 1e-17]], dtype=torch.float64)
    return ImageScore(number, 2 * number, scores, torch.tensor([[number, 1], [0, 0]]), {"empty box": 2})


def same(a, b):
    return (
        (a.tokens, a.answer_tokens, a.bad_boxes) == (b.tokens, b.answer_tokens, b.bad_boxes)
        and torch.equal(a.scores, b.scores)
        and torch.equal(a.hits, b.hits)
    )


def test_scores_come_back_exactly_and_in_order(tmp_path):
    with ScoredImages(tmp_path / "j", RUN, rank=1) as book:
        book.add({5: image(5), 3: image(3)})
    with ScoredImages(tmp_path / "j", RUN, rank=0) as book:
        book.add({0: image(0)})
        found = book.read()
    assert list(found) == [0, 3, 5]
    assert all(same(found[number], image(number)) for number in found)


def test_what_a_killed_run_left_is_dropped(tmp_path):
    with ScoredImages(tmp_path, RUN) as book:
        book.add({1: image(1), 2: image(2)})
    [path] = tmp_path.glob("part-*.jsonl")
    with path.open("a") as file:
        file.write('{"image": 7, "tok')
    with ScoredImages(tmp_path, RUN) as book:
        assert list(book.read()) == [1, 2]
        book.add({4: image(4)})
        assert list(book.read()) == [1, 2, 4]


def test_a_torn_first_line_starts_afresh(tmp_path):
    (tmp_path / "part-00000.jsonl").write_text('{"sum": "sparse')
    with ScoredImages(tmp_path, RUN) as book:
        assert book.read() == {}
        book.add({1: image(1)})
        assert list(book.read()) == [1]


def test_another_runs_journal_is_refused(tmp_path):
    with ScoredImages(tmp_path, RUN) as book:
        book.add({1: image(1)})
    for rank in (0, 1):
        with pytest.raises(HeadScoreError, match=r"seed=0 there, 1 here.*another journal folder"):
            ScoredImages(tmp_path, {**RUN, "seed": 1}, rank)
    with ScoredImages(tmp_path, RUN):  # a refusal leaves no lock behind
        pass
    (tmp_path / "part-3.jsonl").write_text('{"format": "x"}\n')
    with pytest.raises(JournalError, match=r"part-3.jsonl was written by another version.*another journal"):
        ScoredImages(tmp_path, RUN)


def test_removing_leaves_what_is_not_the_journals(tmp_path):
    for rank in (0, 1):
        with ScoredImages(tmp_path / "j", RUN, rank):
            pass
    (tmp_path / "j" / "mine.txt").touch()
    remove_records(tmp_path / "j", KIND)
    assert [path.name for path in (tmp_path / "j").iterdir()] == ["mine.txt"]
    (tmp_path / "j" / "mine.txt").unlink()
    remove_records(tmp_path / "j", KIND)
    assert not (tmp_path / "j").exists()
