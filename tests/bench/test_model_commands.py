import json
import re

import pytest
import torch
from typer.testing import CliRunner

from sparsemm_eval.bench import report
from sparsemm_eval.bench.commands import app
from sparsemm_eval.bench.model_runs import combinations, guarded
from sparsemm_eval.bench.random_models import synthetic_scores
from sparsemm_eval.errors import ConfigError, HeadScoreError

TINY = ["--shape", "tiny", "--device", "cpu", "--dtype", "float32", "--lengths", "64", "--budget", "40"]


def bench(command, folder, *more):
    arguments = [command, *TINY, "--batches", "1,2", "--steps", "2", "--out", str(folder), *more]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "copy bandwidth" in done.stdout
    assert (folder / f"bench-{command}.png").stat().st_size > 1000
    assert (folder / f"bench-{command}.md").read_text().startswith("| method | mode |")
    return json.loads((folder / f"bench-{command}.json").read_text())


def test_latency_memory_and_floor_of_every_combination(tmp_path):
    content = bench(
        "decode", tmp_path, "--methods", "fullkv,sparsemm", "--modes", "dynamic,static,eager,graph"
    )
    rows = content["rows"]
    assert [(row["method"], row["mode"]) for row in rows[:6]] == [
        ("fullkv", "dynamic"), ("fullkv", "static"), ("fullkv", "eager"), ("fullkv", "graph"),
        ("sparsemm", "eager"), ("sparsemm", "graph"),
    ]  # fmt: skip
    assert len(rows) == 12
    entry = 2 * 2 * 2 * 16 * 4  # keys and values of 2 layers, 2 KV heads, 16 floats
    read = rows[0]["weights"] - 97 * 64 * 4  # all but the embedding
    for row in rows[:4]:
        assert row["moved_bytes"] == read + 64 * entry
    assert rows[6]["moved_bytes"] == read + 2 * 64 * entry
    assert all(read < row["moved_bytes"] <= read + 40 * entry for row in rows[4:6])
    for row in rows:
        assert row["ms_per_token"] > 0
        assert row["share"] == pytest.approx(row["floor_ms"] / row["ms_per_token"])
        assert row["kv"] >= (row["moved_bytes"] - read)
        assert row["rest"] is None  # a CPU counts no memory


@pytest.mark.parametrize("command", ["prefill", "memory"])
def test_the_commands_of_other_columns(tmp_path, command):
    rows = bench(command, tmp_path, "--methods", "sparsemm", "--modes", "eager")["rows"]
    assert len(rows) == 2
    assert all(row["prefill_ms"] > 0 for row in rows)


def test_throughput(tmp_path):
    content = bench(
        "throughput", tmp_path, "--methods", "fullkv,sparsemm", "--modes", "dynamic,graph", "--samples", "2"
    )
    assert len(content["rows"]) == 6
    assert all(row["samples_per_s"] > 0 for row in content["rows"])
    assert content["shape"] == "tiny"


def test_the_synthetic_table_is_as_concentrated_as_published():
    table = synthetic_scores(32, 32).table.flatten().sort(descending=True).values.double()
    shares = table.cumsum(0) / table.sum()
    assert float(shares[round(0.05 * 1024) - 1]) == pytest.approx(0.56, abs=0.01)
    assert float(shares[round(0.10 * 1024) - 1]) == pytest.approx(0.77, abs=0.01)
    assert not torch.equal(table, synthetic_scores(32, 32, seed=1).table.flatten().double())


def test_plain_caches_know_fullkv_only():
    settings = combinations(["snapkv"], ["dynamic", "static", "eager"], [64], [1])
    assert [setting.mode for setting in settings] == ["eager"]


def test_a_run_without_memory_is_a_row_of_table_and_plot(tmp_path):
    def fail(setting):
        raise torch.OutOfMemoryError("no room\nand more")

    (setting,) = combinations(["fullkv"], ["eager"], [64], [2], budget=40)
    row = guarded(setting, fail)
    assert (row["method"], row["batch"], row["error"]) == ("fullkv", 2, "out of memory: no room")
    report.save({"rows": [row]}, tmp_path, "bench", "kv", "bytes")
    assert "| fullkv | eager | 64 | 2 | – | out of memory: no room |" in (tmp_path / "bench.md").read_text()
    assert (tmp_path / "bench.png").stat().st_size > 1000


@pytest.mark.parametrize("command", ["decode", "throughput"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shape", "bert"),
        ("modes", "fast"),
        ("modes", ""),
        ("methods", "quest"),
        ("dtype", "int8"),
        ("device", "tpu"),
        ("device", "meta"),
        ("kernel", "foo"),
        ("steps", 10**30),
        ("budget", 2**31),
        ("out", __file__),
    ],
)
def test_wrong_values_are_refused_before_anything_is_measured(command, name, value, monkeypatch):
    monkeypatch.setattr("sparsemm_eval.bench.clock.copy_bandwidth", lambda *_: pytest.fail("measured"))
    with pytest.raises(ConfigError, match=re.escape(f"{name}={value!r}")):
        CliRunner().invoke(app, [command, *TINY, f"--{name}", str(value)], catch_exceptions=False)


def test_head_scores_of_another_shape_are_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr("sparsemm_eval.bench.clock.copy_bandwidth", lambda *_: pytest.fail("measured"))
    arguments = ["decode", *TINY, "--head-scores", "tiny-reader"]
    with pytest.raises(HeadScoreError, match=r"the model has \[2, 4\]"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_modes_that_run_none_of_the_methods_are_refused():
    arguments = ["decode", *TINY, "--methods", "snapkv", "--modes", "dynamic"]
    with pytest.raises(ConfigError, match="modes='dynamic'"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
