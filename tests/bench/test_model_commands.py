import json
import re

import pytest
import torch
from typer.testing import CliRunner

from sparsemm_eval import compat
from sparsemm_eval.bench import clock, model_runs, report
from sparsemm_eval.bench.commands import app
from sparsemm_eval.bench.model_runs import combinations, guarded
from sparsemm_eval.bench.random_models import SHAPES, build, synthetic_scores
from sparsemm_eval.errors import ConfigError, HeadScoreError

TINY = ["--shape", "tiny", "--device", "cpu", "--dtype", "float32", "--lengths", "64", "--budget", "40"]


def bench(command, folder, *more):
    arguments = [command, *TINY, "--batches", "1,2", "--steps", "2", "--out", str(folder), *more]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "measured memory bandwidth" in done.stdout
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
    report.plot([row], "kv", "bytes", tmp_path / "bench.png")
    assert "| fullkv | eager | 64 | 2 | – | out of memory: no room |" in report.markdown([row])
    assert (tmp_path / "bench.png").stat().st_size > 1000


@pytest.fixture
def model():
    return build(SHAPES["tiny"], torch.device("cpu"), torch.float32, 256)


SCORES = synthetic_scores(2, 4)
SETTINGS = combinations(["fullkv", "sparsemm"], ["static", "eager", "graph"], [64], [2], budget=40, steps=2)


def watched_steps(monkeypatch, before_each):
    original = model_runs._stepper

    def stepper(model, cache, ids, setting):
        step, tokens = original(model, cache, ids, setting)

        def watched():
            before_each(setting)
            step()

        return watched, tokens

    monkeypatch.setattr(model_runs, "_stepper", stepper)


def test_on_a_cpu_timed_steps_take_turns_and_the_model_stays_as_it_is(model, monkeypatch):
    order = []

    def note(setting):
        order.append(setting)
        assert compat.attention_of(model.config) == "sdpa"

    watched_steps(monkeypatch, note)
    longer = combinations(["fullkv"], ["dynamic", "eager"], [65], [2], budget=40, steps=2)
    rows = model_runs.measure_all(model, [*SETTINGS, *longer], 1e9, SCORES)
    first = [setting for setting in SETTINGS for _ in range(3)] + SETTINGS * 2
    assert order == first + [setting for setting in longer for _ in range(3)] + longer * 2
    assert [(row["method"], row["mode"], row["length"]) for row in rows] == [
        (setting.method, setting.mode, setting.length) for setting in [*SETTINGS, *longer]
    ]
    assert compat.attention_of(model.config) == "sdpa"
    assert "generate" not in vars(model)
    assert not any(compat.hooks_of(module) for module in model.modules())


def test_in_turn_is_measured_what_is_measured_alone(model):
    rows = model_runs.measure_all(model, SETTINGS, 1e9, SCORES)
    for setting, row in zip(SETTINGS, rows, strict=True):
        alone = model_runs.measure(model, setting, 1e9, SCORES)
        assert list(alone) == list(row)
        for name in ("kv", "moved_bytes", "floor_ms", "weights"):
            assert row[name] == alone[name]


def test_a_twin_has_the_same_tensors_and_settings_of_its_own(model):
    twin = model_runs.twin(model)
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = (dict(getattr(one, kind)()) for one in (model, twin))
        assert ours.keys() == theirs.keys()
        assert all(theirs[name] is tensor for name, tensor in ours.items())
    assert not set(model.modules()) & set(twin.modules())
    assert twin.config is not model.config
    assert twin.model.layers[0].self_attn.config is twin.config


LACKING = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


@pytest.mark.parametrize(
    ("error", "message"),
    [(RuntimeError(f"{LACKING}\nmore"), f"out of memory: {LACKING}"), (MemoryError(), "out of memory")],
    ids=["torch", "Python"],
)
@pytest.mark.parametrize("at", [0, 3], ids=["first steps", "timed steps"])
def test_what_does_not_fit_a_cpu_leaves_the_other_rows(model, monkeypatch, error, message, at):
    done = []

    def fail(setting):
        if setting == SETTINGS[1]:
            done.append(setting)
            if len(done) > at:
                raise error

    watched_steps(monkeypatch, fail)
    rows = model_runs.measure_all(model, SETTINGS, 1e9, SCORES)
    assert [row.get("error") for row in rows] == [None, message, *[None] * (len(SETTINGS) - 2)]
    assert (rows[1]["method"], rows[1]["mode"], rows[1]["batch"]) == ("fullkv", "eager", 2)
    assert len(done) == at + 1


def test_other_errors_are_no_lack_of_memory(model, monkeypatch):
    def fail(setting):
        raise RuntimeError("shapes differ")

    watched_steps(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        model_runs.measure_all(model, SETTINGS, 1e9, SCORES)
    assert compat.attention_of(model.config) == "sdpa"


def test_the_floor_is_that_of_the_highest_bandwidth(tmp_path, monkeypatch):
    found = {"copy": 1e9, "sum": 4e9, "matrix-vector product": 2e9}
    monkeypatch.setattr(clock, "memory_bandwidths", lambda device: found)
    content = bench("decode", tmp_path, "--methods", "fullkv", "--modes", "dynamic")
    assert content["memory_bytes_per_s"] == found
    for row in content["rows"]:
        assert row["floor_ms"] == pytest.approx(1000 * row["moved_bytes"] / 4e9)


def test_a_cpu_reads_as_well_as_copies():
    bandwidths = clock.memory_bandwidths(torch.device("cpu"))
    assert list(bandwidths) == ["copy", "sum", "matrix-vector product"]
    assert all(rate > 0 for rate in bandwidths.values())


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
    monkeypatch.setattr("sparsemm_eval.bench.clock.memory_bandwidths", lambda *_: pytest.fail("measured"))
    with pytest.raises(ConfigError, match=re.escape(f"{name}={value!r}")):
        CliRunner().invoke(app, [command, *TINY, f"--{name}", str(value)], catch_exceptions=False)


def test_head_scores_of_another_shape_are_refused_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr("sparsemm_eval.bench.clock.memory_bandwidths", lambda *_: pytest.fail("measured"))
    arguments = ["decode", *TINY, "--head-scores", "tiny-reader"]
    with pytest.raises(HeadScoreError, match=r"the model has \[2, 4\]"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_modes_that_run_none_of_the_methods_are_refused():
    arguments = ["decode", *TINY, "--methods", "snapkv", "--modes", "dynamic"]
    with pytest.raises(ConfigError, match="modes='dynamic'"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
