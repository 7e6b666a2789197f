import json
import re

import pytest
import torch
from typer.testing import CliRunner

from sparsemm_eval.bench.commands import app
from sparsemm_eval.bench.decode_attention import Shape, head_lengths, measure
from sparsemm_eval.errors import ConfigError


def test_both_sides_hold_the_same_number_of_entries():
    shape = Shape(kv_heads=8, group=2, head_dim=16, budget=40, dtype=torch.float32)
    lengths = head_lengths(shape, torch.Generator().manual_seed(0))
    assert int(lengths.sum()) == 8 * 40
    assert int(lengths.max()) > 2 * int(lengths.min())


def test_measures_something():
    shape = Shape(kv_heads=4, group=1, head_dim=16, budget=40, dtype=torch.float32)
    row = measure(shape, rounds=2, device=torch.device("cpu"))
    assert min(row.dense_ms, row.rows_ms, row.ragged_ms) > 0
    assert row.longest >= 40


def test_command_prints_a_row_per_shape():
    arguments = ["attention", "--budgets", "20,30", "--groups", "1", "--kv-heads", "2", "--rounds", "1"]
    done = CliRunner().invoke(app, [*arguments, "--head-dim", "8", "--json"], catch_exceptions=False)
    assert [row["shape"]["budget"] for row in json.loads(done.stdout)] == [20, 30]


@pytest.mark.parametrize(
    ("name", "value"),
    [("budgets", "20,x"), ("budgets", "1e30"), ("device", "tpu"), ("dtype", "int8"), ("rounds", 10**30)],
)
def test_wrong_values_are_named(name, value):
    with pytest.raises(ConfigError, match=re.escape(f"{name}={value!r}")):
        CliRunner().invoke(app, ["attention", f"--{name}", str(value)], catch_exceptions=False)
