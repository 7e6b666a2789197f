"""A real study with W&B offline: a run for each cell, and one for the study."""

import json
import sys

import pytest

from tests.lmms_process import SECRETS, checkpoint, environment, files_with_secrets, run
from tests.tracking.offline_runs import read_sessions

TEXT = """\
name: real
output: out
models:
  - {{name: reader, pretrained: {pretrained}}}
methods: [fullkv, snapkv]
budgets: [32]
tasks: pages_qa
knobs: {{window: 8}}
limit: 3
batch_size: 1
retries: 0
wandb: {{mode: offline}}
"""


@pytest.mark.slow
def test_a_study_with_wandb(tmp_path):
    (tmp_path / "study.yaml").write_text(TEXT.format(pretrained=checkpoint("tiny-reader", tmp_path)))
    line = [sys.executable, "-m", "sparsemm_eval", "study", "run", "study.yaml"]
    done = run(line, tmp_path, **environment(tmp_path), **SECRETS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert files_with_secrets(tmp_path, done.stdout + done.stderr) == []
    study = tmp_path / "out"
    runs = {run.name: run for run in read_sessions(study)}
    cells = json.loads((study / "study.json").read_text())["cells"]
    assert set(runs) == {*cells, "real"}
    for cell in cells:
        folder = study / "cells" / cell
        status = json.loads((folder / "status.json").read_text())
        record = json.loads((folder / status["results"]).read_text())
        measured, logged = record["sparsemm"]["measured"], runs[cell]
        assert status["wandb"] == "logged"
        assert logged.summary["pages_qa/exact_match"] == record["results"]["pages_qa"]["exact_match,none"]
        for name in ("effective_budget", "kv_bytes_per_sample", "samples_timed", "decode_seconds_per_token"):
            assert logged.summary[name] == pytest.approx(measured[name])
        assert logged.config["version_torch"] == record["sparsemm"]["versions"]["torch"]
        assert logged.config.get("window") == (8 if "snapkv" in cell else None)
    [row] = runs["real"].rows("comparison")
    assert row["comparison"]["nrows"] == 2
