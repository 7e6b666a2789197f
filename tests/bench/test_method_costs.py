"""`sparsemm bench methods`: figures of every kind, at sizes that say nothing about speed."""

import json

import pytest
from typer.testing import CliRunner

from sparsemm_eval.bench.method_costs import reads_per_layer
from sparsemm_eval.cli import app
from tests.methods.matrix import EVICTING, config_of
from tests.tiny_models import model_of


def test_the_command(tmp_path):
    line = ["bench", "methods", "--shape", "tiny", "--layers", "2", "--lengths", "60,90", "--budget", "40"]
    line += ["--methods", "snapkv,kvzip,oracle", "--rounds", "1", "--out", str(tmp_path)]
    outcome = CliRunner().invoke(app, line)
    assert outcome.exit_code == 0, outcome.output
    rows = json.loads((tmp_path / "bench-methods.json").read_text())["rows"]
    assert {(row["method"], row["length"], row["passes"]) for row in rows} == {
        (method, length, passes)
        for method, passes in (("snapkv", 1), ("kvzip", 2), ("oracle", 3))
        for length in (60, 90)
    }
    assert all(row["times_fullkv"] > 0 and row["prefill_ms"] > 0 for row in rows)
    table = (tmp_path / "bench-methods.md").read_text()
    assert table.count("\n") == 5
    assert table in outcome.output


def test_a_prompt_that_is_not_cut_is_refused():
    line = ["bench", "methods", "--shape", "tiny", "--layers", "2", "--lengths", "40", "--budget", "40"]
    outcome = CliRunner().invoke(app, line)
    assert outcome.exit_code == 1
    assert "lengths='40' is not valid" in str(outcome.exception)


@pytest.mark.parametrize("method", EVICTING)
def test_the_host_waits_for_the_device_only_where_layers_share_a_budget(method):
    config = config_of(method, budget=24, window=8)
    reads = reads_per_layer(config, model_of("mistral").config)
    assert (reads > 0) == ("all_layers" in config.needs or method == "criticaladakv")
