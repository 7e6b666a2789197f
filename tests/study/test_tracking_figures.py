import json
import math

import numpy as np
import pandas as pd
import pytest

from sparsemm_eval.study.json_values import plain
from sparsemm_eval.study.tracking_figures import cell_config, rows_config, summary
from tests.study.tracked_cells import make_cell, result_row


@pytest.fixture
def cell(tmp_path):
    return make_cell(tmp_path)[0]


def test_config_is_flat_and_has_the_knobs(cell):
    config = cell_config(cell)
    expected = {"method": "snapkv", "budget": 32, "model": "tiny-reader", "task": "pages_qa", "window": 8}
    assert expected.items() <= config.items()
    assert config["config_hash"] == config["cell_hash"] == cell["hash"]
    assert config["model_args.dtype"] == "float32"
    assert not any("journal" in key or "stats_dir" in key for key in config)
    assert not any(isinstance(value, dict) for value in config.values())


@pytest.mark.parametrize("name", ["hub_token", "API_KEY", "apikey", "password", "client_secret"])
def test_config_has_no_secrets(cell, name):
    cell["model_args"][name] = "marker"
    assert "marker" not in json.dumps(cell_config(cell))


def test_config_of_rows_completes_without_blanks(cell):
    config = rows_config([result_row(cell)])
    assert config == {
        "budget": 32,
        "ratio": 0.1,
        "gqa": "mean",
        "version_torch": "2.15.0",
        "config_hash": cell["hash"],
    }
    assert isinstance(config["budget"], int)
    assert rows_config([]) == {}


def test_summary_of_one_task_stands_with_and_without_its_name(cell):
    found = summary([result_row(cell)])
    for name in ("score", "effective_budget", "kv_bytes", "decode_seconds", "agreement", "samples"):
        assert found[name] == found[f"pages_qa/{name}"] == result_row(cell)[name]
    assert found["pages_qa/exact_match"] == 0.5
    assert found["other"] == 0.25
    assert "stderr" not in found


def test_summary_of_several_tasks_adds_up_what_can_be(cell):
    rows = [
        result_row(cell, "a", samples=2, effective_budget=10.0, effective_budget_min=9.0, kv_bytes_peak=5),
        result_row(cell, "b", samples=3, effective_budget=20.0, effective_budget_min=19.0, kv_bytes_peak=7),
    ]
    found = summary(rows)
    assert (found["samples"], found["effective_budget"]) == (5, 15.0)
    assert (found["effective_budget_min"], found["kv_bytes_peak"]) == (9.0, 7)
    assert found["a/effective_budget"] == 10.0
    assert found["b/score"] == 0.5
    assert "score" not in found
    assert "exact_match" not in found


def test_summary_of_a_pandas_row(cell):
    row = pd.DataFrame([result_row(cell)]).astype({"samples": "Int64"}).to_dict("records")[0]
    assert summary([row]) == summary([result_row(cell)])


def test_metric_names_of_lmms_eval_lose_their_filter(cell):
    found = summary([result_row(cell, scores={"exact_match,none": 0.75})])
    assert found["pages_qa/exact_match"] == 0.75


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (math.nan, None),
        (math.inf, None),
        (pd.NA, None),
        (pd.NaT, None),
        (None, None),
        ("text", "text"),
        ([np.int32(1), math.nan], [1, None]),
        ({"a": np.float32(0.5)}, {"a": 0.5}),
    ],
)
def test_plain_values(value, expected):
    assert plain(value) == expected
    json.dumps(plain(value), allow_nan=False)
