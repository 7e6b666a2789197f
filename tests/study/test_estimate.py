"""Estimates of time and disk from cells that are done."""

import pytest

from sparsemm_eval.study import estimate
from tests.study.running import load, write_study


@pytest.fixture
def study(tmp_path):
    study, cells, place = load(write_study(tmp_path / "study.yaml"))
    place.prepare(study, cells)
    return place, cells


def finish(place, cell, seconds, documents):
    place.cell(cell.id).write_status(
        {"state": "done", "seconds": seconds, "documents": documents, "attempts": 1, "hash": cell.hash}
    )


def of(cells, method, tasks):
    return [cell for cell in cells if cell.method == method and cell.tasks == tasks]


def test_nothing_is_known_of_the_time_before_a_cell_is_done(study):
    place, cells = study
    found = estimate.of(place, cells)
    assert found.seconds is None
    assert "no cell of this study is done" in found.why
    # 5 cells of 5 documents, 5 of 10
    assert found.bytes == 10 * estimate.BYTES_PER_CELL + 75 * estimate.BYTES_PER_DOCUMENT


def test_the_most_similar_done_cells_count(study):
    place, cells = study
    (full,) = of(cells, "fullkv", ("one",))
    finish(place, full, 10.0, 5)
    # The other tasks have twice the documents.
    assert estimate.of(place, cells).seconds == 4 * 10.0 + 5 * 20.0
    snap, other = of(cells, "snapkv", ("one",))
    finish(place, snap, 6.0, 5)
    # Its twin takes 6; sparsemm's two the median of 10 and 6; the others twice their method's.
    assert estimate.of(place, cells).seconds == 6.0 + 2 * 8.0 + 20.0 + 2 * 12.0 + 2 * 16.0
    assert estimate.of(place, cells, workers=2).seconds == 49.0
    assert estimate.seconds_left(place, [other]) is None
    assert estimate.seconds_left(place, [snap, other]) == 6.0


def test_documents_without_a_limit_are_not_guessed(tmp_path):
    path = write_study(tmp_path / "study.yaml", limit="null")
    study, cells, place = load(path)
    place.prepare(study, cells)
    found = estimate.of(place, cells)
    assert found.bytes is None
    (full,) = of(cells, "fullkv", ("one",))
    finish(place, full, 10.0, 200)
    found = estimate.of(place, cells)
    assert found.seconds is None
    assert "two+three" in found.why
    assert estimate.of(place, [cell for cell in cells if cell.tasks == ("one",)]).seconds == 40.0
    assert found.bytes == (len(cells) - 1) * place.cell(full.id).size()


def test_everything_done(study):
    place, cells = study
    for cell in cells:
        finish(place, cell, 1.0, 5)
    found = estimate.of(place, cells)
    assert (found.seconds, found.bytes) == (0.0, 0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (0.4, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3599, "1 h 00 min"),
        (5025, "1 h 24 min"),
    ],
)
def test_seconds_as_text(seconds, text):
    assert estimate.text_of_seconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "unknown"), (5, "5 bytes"), (1536, "1.5 KiB"), (5 * 2**30, "5.0 GiB"), (5 * 2**40, "5120.0 GiB")],
)
def test_bytes_as_text(count, text):
    assert estimate.text_of_bytes(count) == text
