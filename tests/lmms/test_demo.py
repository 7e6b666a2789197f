"""The demo without its runs: arguments in, figures out."""

from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sparsemm_eval.cli import app
from sparsemm_eval.errors import EvaluationError
from sparsemm_eval.lmms import demo
from sparsemm_eval.lmms.results import ResultsFile
from sparsemm_eval.model import session

SETTINGS = demo.Settings(reader="tiny-reader", budget=32, kernel_size=5, limit=3, output=Path("runs/demo"))
TIMES = (0.05, 0.004)  # prefill, decode
METHODS = {method.name: method for method in demo.compared()}


def results(**changes):
    measured = {
        "avg_nominal_budget": 32.0,
        "avg_effective_budget": 31.5,
        "avg_kv_bytes_per_sample": 2048.0,
        "avg_prefill_seconds_per_sample": 99.0,  # by the clock on the wall, and so no figure of the table
        "avg_decode_seconds_per_step": 99.0,
    }
    scores = {"pages_qa": {"exact_match,none": 0.75}, "pages_ocr": {"character_accuracy,none": 0.5}}
    contents = {"results": scores, "throughput": {**measured, **changes}}
    return ResultsFile(Path("r.json"), contents)


def stub(monkeypatch):
    monkeypatch.setattr(demo, "evaluate", lambda arguments, environment: [results()])
    monkeypatch.setattr(demo, "cpu_times", lambda settings: [TIMES] * len(METHODS))


def test_arguments():
    line = demo.arguments_of(METHODS["snapkv"], SETTINGS)
    given = dict(zip(line[:-1:2], line[1::2], strict=True))
    expected = "pretrained=tiny-reader,journal=off,budget=32,window=8,kernel_size=5"
    assert given["--model_args"] == expected
    assert given["--tasks"] == "pages_qa,pages_ocr"
    full = demo.arguments_of(METHODS["fullkv"], SETTINGS)
    assert "pretrained=tiny-reader,journal=off" in full


def test_table_shows_what_was_recorded(monkeypatch):
    stub(monkeypatch)
    console = Console(width=80, record=True)
    console.print(demo.table_of(demo.run(SETTINGS), SETTINGS))
    text = console.export_text()
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if "llava_" in line}
    measured = ["0.750", "0.500", "32", "31.5", "2", "50.0", "4.00"]
    assert lines["llava_sparsemm"] == lines["llava_snapkv"] == measured
    assert lines["llava_fullkv"] == [*measured[:2], "all", *measured[3:]]
    assert "window=8, kernel_size=5" in text
    assert "…" not in text
    assert text.count("CPU ms") == 2


def test_times_are_the_clocks_and_methods_take_turns(monkeypatch):
    """A clock that a method moves on at every look, by the more the later it is in the list."""
    turns, now = [], [0.0]
    compress = session.compress

    def noted(model, config):
        turns.append(config.method)
        return compress(model, config)

    def clock():
        now[0] += 10.0 ** list(METHODS).index(turns[-1])
        return now[0]

    monkeypatch.setattr(session, "compress", noted)
    found = demo.cpu_times(SETTINGS, clock)
    assert turns == list(METHODS) * len(demo.TASKS) * SETTINGS.limit
    assert found == [(step, step) for step in (1, 10, 100)]
    looks = demo.TIMED_TOKENS + 1  # before the prompt, and after every token
    assert now[0] == 111 * looks * len(demo.TASKS) * SETTINGS.limit


def test_a_missing_figure_is_an_error():
    file = results()
    del file.contents["throughput"]["avg_kv_bytes_per_sample"]
    with pytest.raises(EvaluationError, match="avg_kv_bytes_per_sample"):
        demo.row_of(METHODS["snapkv"], file, TIMES)


def test_a_failed_run_fails_the_demo(monkeypatch):
    def fail(arguments, environment):
        raise EvaluationError("no results")

    monkeypatch.setattr(demo, "evaluate", fail)
    outcome = CliRunner().invoke(app, ["demo"])
    assert str(outcome.exception) == "no results"


def test_a_knob_that_cannot_be_is_refused_before_the_first_run(monkeypatch):
    monkeypatch.setattr(demo, "evaluate", lambda *_, **__: pytest.fail("evaluated"))
    outcome = CliRunner().invoke(app, ["demo", "--kernel-size", "4"])
    assert "kernel_size=4" in str(outcome.exception)


def test_the_command_says_where_results_are_and_names_kernel_size(monkeypatch, tmp_path):
    stub(monkeypatch)
    outcome = CliRunner().invoke(app, ["demo", "--output", str(tmp_path)])
    assert outcome.exit_code == 0, outcome.output
    assert str(tmp_path) in outcome.output
    assert "Scores depend on kernel_size" in outcome.output
