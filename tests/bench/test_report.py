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


def test_speed_ups_are_over_the_same_mode_and_over_the_fastest_transformers_cache():
    rows = [
        row("fullkv", "graph", 10.0),
        row("sparsemm", "graph", 4.0),
        row("fullkv", "static", 6.0),
        row("fullkv", "dynamic", 9.0),
        row("sparsemm", "eager", 20.0),  # no FullKV in that mode: nothing to say but against transformers
        row("sparsemm", "graph", 5.0, length=200),
        row("fullkv", "dynamic", 8.0, length=300),
        row("fullkv", "eager", 2.0, length=300),
        {"method": "snapkv", "mode": "graph", "length": 100, "batch": 1, "error": "out of memory"},
    ]
    found = report.with_speed_ups(rows)
    assert [one.get("times_fullkv") for one in found] == [None, pytest.approx(2.5), *[None] * 7]
    ratios = [0.6, 1.5, None, 2 / 3, 0.3, None, None, 4.0, None]
    assert [one.get("times_plain") for one in found] == [ratio and pytest.approx(ratio) for ratio in ratios]
    modes = ["static", "static", None, "static", "static", None, None, "dynamic", None]
    assert [one.get("plain_mode") for one in found] == modes


def test_the_table_names_the_cache_it_compares_with_and_counts_the_tokens_of_all_sequences():
    figures = dict.fromkeys(("prefill_ms", "floor_ms", "share", "moved_bytes", "weights", "kv"), 1)
    figures |= dict.fromkeys(("rest", "peak_prefill", "peak_decode"))
    rows = [row("fullkv", "dynamic", 8.0, **figures), row("fullkv", "eager", 4.0, **figures)]
    header, _, *lines = report.markdown([one | {"batch": 3} for one in rows]).splitlines()
    cells = [
        dict(zip(*(line.split(" | ") for line in pair), strict=True))
        for pair in zip([header] * 2, lines, strict=True)
    ]
    assert [one["tokens/s"] for one in cells] == ["375.0", "750.0"]
    assert [one["× transformers |"].rstrip("| ") for one in cells] == ["", "2.00 dynamic"]


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
