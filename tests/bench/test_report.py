"""Results of benchmarks: speed-ups over fair baselines, and two files against each other."""

import json

import pytest
from typer.testing import CliRunner

from sparsemm_eval.bench import report
from sparsemm_eval.bench.commands import app


def row(method, mode, ms, length=100, **more):
    return {
        "method": method,
        "mode": mode,
        "length": length,
        "batch": 1,
        "budget": 8,
        "ms_per_token": ms,
        **more,
    }


def test_speed_ups_are_over_the_same_mode_and_over_a_compiled_model():
    rows = [
        row("fullkv", "graph", 10.0),
        row("sparsemm", "graph", 4.0),
        row("fullkv", "static", 6.0),
        row("sparsemm", "eager", 20.0),  # no FullKV in that mode: nothing to say but against the compiled one
        row("sparsemm", "graph", 5.0, length=200),
        {"method": "snapkv", "mode": "graph", "length": 100, "batch": 1, "error": "out of memory"},
    ]
    found = [
        [one.get(name) for name in ("times_fullkv", "times_static")] for one in report.with_speed_ups(rows)
    ]
    assert [fullkv for fullkv, _ in found] == [None, pytest.approx(2.5), None, None, None, None]
    assert [static for _, static in found] == [
        pytest.approx(0.6), pytest.approx(1.5), None, pytest.approx(0.3), None, None
    ]  # fmt: skip


@pytest.fixture
def files(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def suite(ms, rate):
    return {
        "long prompts": {
            "shape": "vicuna",
            "rows": [row("sparsemm", "graph", ms), {"method": "x", "error": "no"}],
        },
        "benchmark mix": {
            "rows": [{"method": "fullkv", "mode": "graph", "length": 9, "samples_per_s": rate}]
        },
        "environment": {"device": "a GPU"},
    }


def test_two_files_are_compared_row_by_row(files):
    old, new = files("old.json", suite(4.0, 2.0)), files("new.json", suite(4.2, 2.5))
    done = CliRunner().invoke(app, ["compare", old, new])
    assert done.exit_code == 0, done.output
    assert "1.05" in done.output
    assert "0.80" in done.output
    done = CliRunner().invoke(app, ["compare", old, new, "--slower", "1.04"])
    assert done.exit_code == 1
    assert "1.05, more than 1.04" in done.output


def test_only_what_measured_the_same_is_compared(files):
    """Shape and dtype stand beside the rows, once for a file."""
    facts = {"shape": "Vicuna", "dtype": "bfloat16", "device": "A", "rows": [row("sparsemm", "graph", 4.0)]}
    old = files("old.json", facts)
    for other in ({"shape": "tiny"}, {"dtype": "float32"}):
        done = CliRunner().invoke(app, ["compare", old, files("new.json", facts | other)])
        assert "measured something of what" in str(done.exception)
    done = CliRunner().invoke(app, ["compare", old, files("new.json", facts | {"device": "B"})])
    assert done.exit_code == 0
    assert "Measured on different devices: A, then B." in done.output


@pytest.mark.parametrize("content", ["{", {"rows": []}])
def test_what_is_no_result_file_is_named(files, content):
    old, new = files("old.json", suite(4.0, 2.0)), files("new.json", content)
    done = CliRunner().invoke(app, ["compare", old, new])
    assert done.exit_code != 0
    assert "new=" in str(done.exception)
