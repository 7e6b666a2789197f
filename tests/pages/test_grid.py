import json

import pytest
from typer.testing import CliRunner

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.pages.commands import app
from sparsemm_eval.pages.grid import METHODS, Cell, Grid, Outcome, cells, markdown, mean_and_error, run


@pytest.fixture(scope="module")
def whole():
    return Grid("tiny-reader")


@pytest.fixture(scope="module")
def small():
    return Grid("tiny-reader", limit=6)


@pytest.mark.parametrize(("task", "documents", "target"), [("pages_qa", 200, 0.97), ("pages_ocr", 64, 0.98)])
def test_the_shipped_reader_reads_the_held_out_pages(whole, task, documents, target):
    outcome = whole.run(Cell("fullkv", 0, 0), task)
    assert outcome.documents == documents
    assert outcome.score >= target


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_about_its_budget(small, method):
    outcome = small.run(Cell(method, 48, 5), "pages_qa")
    assert 0 <= outcome.score <= 1
    assert 20 < outcome.effective_budget < 50


def test_visual_heads_carry_the_answer(whole):
    """The mechanism of the paper: the same entries spread evenly lose what the visual heads keep."""
    scores = {method: whole.run(Cell(method, 32, 5), "pages_qa").score for method in ("sparsemm", "random")}
    assert scores["sparsemm"] > 0.9
    assert scores["random"] < 0.1


def test_cells_are_run_once(small, tmp_path):
    wanted = cells([32], [5])
    calls = []

    class Counting:
        def run(self, cell, task):
            calls.append((cell, task))
            return Outcome(cell.method, cell.budget, cell.kernel_size, task, 0.5, 0.1, 32.0, 6)

    first = run(Counting(), wanted, tmp_path / "grid.jsonl")
    assert len(calls) == 2 * (1 + len(METHODS))
    assert run(Counting(), wanted, tmp_path / "grid.jsonl") == first
    assert len(calls) == 2 * (1 + len(METHODS))
    table = markdown(first)
    assert "### pages_qa, kernel_size 5" in table
    assert "| sparsemm | 0.500 ± 0.100 (32.0) |" in table


def test_a_torn_journal_is_named(tmp_path):
    path = tmp_path / "grid.jsonl"
    path.write_text(json.dumps({"method": "snapkv"})[:-3] + "\n")
    with pytest.raises(ConfigError, match=r"grid\.jsonl"):
        run(None, cells([32], [5]), path)


def test_unknown_readers_and_odd_lists_are_refused(tmp_path):
    for arguments in (["--reader", "gpt"], ["--budgets", "8,x"]):
        with pytest.raises(ConfigError):
            CliRunner().invoke(app, ["grid", str(tmp_path / "g.md"), *arguments], catch_exceptions=False)


def test_mean_and_error():
    assert mean_and_error([1.0, 0.0, 1.0, 0.0]) == (0.5, pytest.approx(0.2887, abs=1e-3))
    assert mean_and_error([1.0]) == (1.0, 0.0)
