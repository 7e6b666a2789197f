"""`sparsemm heads mask`: the study that it writes, and once the real command."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from sparsemm_eval.cli import app
from sparsemm_eval.study import checks, commands
from tests.lmms_process import environment, is_shipped

LINE = ["heads", "mask", "--model", "tiny-reader", "--tasks", "pages_qa,pages_ocr", "--shares", "0.05,0.1"]


def test_the_study_that_is_written(tmp_path, monkeypatch):
    called = []
    for name in ("run", "show", "figures"):
        monkeypatch.setattr(commands, name, lambda *given, _name=name, **more: called.append(_name))
    line = [*LINE, "--seeds", "3,7", "--limit", "8", "--out", str(tmp_path), "--model-args", "dtype=float32"]
    outcome = CliRunner().invoke(app, line)
    assert outcome.exit_code == 0, outcome.output
    assert called == ["run", "show", "figures"]
    _, cells = checks.load(tmp_path / "masking.yaml")
    found = {(cell.method, cell.seed, cell.model_args.get("mask_ratio")) for cell in cells}
    assert found == {
        ("fullkv", None, None),
        *(("mask", None, share) for share in (0.05, 0.1)),
        *(("mask_random", seed, share) for share in (0.05, 0.1) for seed in (3, 7)),
    }
    assert {tuple(cell.tasks) for cell in cells} == {("pages_qa", "pages_ocr")}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--shares", "0.6"], "shares='0.6' is not valid"),
        (["--shares", "0"], "shares='0' is not valid"),
        (["--model-args", "dtype"], "model_args='dtype' is not valid"),
    ],
)
def test_wrong_values_are_named(tmp_path, wrong, message):
    outcome = CliRunner().invoke(app, [*LINE, "--out", str(tmp_path), *wrong])
    assert outcome.exit_code == 1
    assert message in str(outcome.exception)


@pytest.mark.slow
@pytest.mark.skipif(not is_shipped("tiny-reader"), reason="no trained reader is shipped")
def test_visual_heads_matter_and_others_do_not(tmp_path):
    line = [sys.executable, "-m", "sparsemm_eval.cli", "heads", "mask", "--model", "tiny-reader"]
    line += ["--tasks", "pages_qa", "--shares", "0.05", "--seeds", "0", "--limit", "8"]
    line += ["--batch-size", "8", "--out", str(tmp_path / "out")]
    surroundings = {**os.environ, **environment(tmp_path)}
    done = subprocess.run(line, cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 cells are done" in done.stdout
    assert "Masking: tiny-reader, pages_qa" in done.stdout
    import pandas as pd

    score = pd.read_parquet(tmp_path / "out" / "results.parquet").set_index("method")["score"]
    assert score["mask"] < score["mask_random"] - 0.3
    assert score["mask_random"] > score["fullkv"] - 0.3
