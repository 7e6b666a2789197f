"""The journal: what a killed run leaves is used, what does not belong is refused."""

from __future__ import annotations

import pytest
import torch

from sparsemm_eval.errors import HeadScoreError
from sparsemm_eval.heads.scoring.batch_scores import ImageScore
from sparsemm_eval.heads.scoring.image_journal import Journal, remove

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
    with Journal(tmp_path / "j", RUN, rank=1) as book:
        book.append({5: image(5), 3: image(3)})
    with Journal(tmp_path / "j", RUN, rank=0) as book:
        book.append({0: image(0)})
        found = book.read()
    assert list(found) == [0, 3, 5]
    assert all(same(found[number], image(number)) for number in found)


@pytest.mark.parametrize("torn", ['{"image": 7, "tok', '{"image": 7}', "\x00\x00"])
def test_a_torn_last_line_is_dropped_and_written_over(tmp_path, torn):
    with Journal(tmp_path, RUN) as book:
        book.append({1: image(1), 2: image(2)})
    before = book.path.read_bytes()
    with open(book.path, "a") as file:
        file.write(torn)
    with Journal(tmp_path, RUN) as book:
        assert list(book.read()) == [1, 2]
        assert book.path.read_bytes() == before
        book.append({4: image(4)})
        assert list(book.read()) == [1, 2, 4]


def test_a_torn_header_starts_afresh(tmp_path):
    (tmp_path / "part-0.jsonl").write_text('{"format": "sparse')
    with Journal(tmp_path, RUN) as book:
        assert book.read() == {}
        book.append({1: image(1)})
        assert list(book.read()) == [1]


def test_another_runs_journal_is_refused(tmp_path):
    with Journal(tmp_path, RUN):
        pass
    with (
        pytest.raises(HeadScoreError, match=r"seed=0 there, 1 here.*another journal folder"),
        Journal(tmp_path, {**RUN, "seed": 1}),
    ):
        pass
    (tmp_path / "part-3.jsonl").write_text('{"format": "x"}\n')
    with (
        Journal(tmp_path, RUN) as book,
        pytest.raises(HeadScoreError, match=r"part-3.jsonl is no head-score"),
    ):
        book.read()


def test_removing_leaves_what_is_not_the_journals(tmp_path):
    for rank in (0, 1):
        with Journal(tmp_path / "j", RUN, rank):
            pass
    (tmp_path / "j" / "mine.txt").touch()
    remove(tmp_path / "j")
    assert [path.name for path in (tmp_path / "j").iterdir()] == ["mine.txt"]
    (tmp_path / "j" / "mine.txt").unlink()
    remove(tmp_path / "j")
    assert not (tmp_path / "j").exists()
