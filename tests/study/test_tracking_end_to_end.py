"""A real evaluation, tracked while it runs, with the real tables of results."""

import json
import math
import os
import subprocess
import sys
import time

import pytest

from sparsemm_eval.study import results
from sparsemm_eval.study.tracking import TrackingSettings, open_tracker
from tests.lmms_process import checkpoint, environment
from tests.study.offline_runs import read_sessions
from tests.study.tracked_cells import make_cell

LIMIT = 4


@pytest.mark.slow
def test_a_real_cell(tmp_path):
    study = tmp_path / "study"
    cell, folder = make_cell(study)
    reader = checkpoint("tiny-reader", tmp_path)
    arguments = f"pretrained={reader},budget=32,window=8,journal={folder}/journal,stats_dir={folder}/stats"
    command = f"eval --model llava_snapkv --model_args {arguments} --tasks pages_qa --limit {LIMIT}"
    command += f" --batch_size 1 --output_path {folder}/lmms --log_samples"
    tracker = open_tracker(TrackingSettings("offline", group="tiny"), cell, folder)
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sparsemm_eval", *command.split()],
            stdout=log,
            stderr=log,
            env={**os.environ, **environment(tmp_path)},
        )
        while process.poll() is None:
            assert tracker.poll().problem is None
            time.sleep(0.2)
    assert process.returncode == 0, (folder / "log.txt").read_text()
    [found] = (folder / "lmms").glob("*/*_results.json")
    status = {"state": "done", "attempts": 1, "results": str(found.relative_to(folder))}
    (folder / "status.json").write_text(json.dumps(status))
    (study / "study.json").write_text(json.dumps({"name": "tiny", "cells": [cell["id"]]}))
    cells, samples = results.collect(study)
    state = tracker.finish(cells.to_dict("records"), samples)
    assert state.problem is None

    [run] = read_sessions(study)
    record = json.loads(found.read_text())
    measured = record["sparsemm"]["measured"]
    assert run.summary["pages_qa/exact_match"] == record["results"]["pages_qa"]["exact_match,none"]
    assert math.isclose(run.summary["effective_budget"], measured["effective_budget"])
    assert math.isclose(run.summary["kv_bytes"], measured["kv_bytes"])
    live = run.rows("progress/")
    assert live[-1]["progress/samples"] == LIMIT
    assert live[-1]["progress/effective_budget"] == pytest.approx(measured["effective_budget"])
    # The score while it ran, from the pages' own answers, ends at lmms-eval's.
    assert live[-1]["progress/score/pages_qa"] == pytest.approx(run.summary["score"])
    over_documents = run.rows("running_score/")
    assert [row["document"] for row in over_documents] == list(range(1, LIMIT + 1))
    assert over_documents[-1]["running_score/pages_qa"] == pytest.approx(run.summary["score"])
    assert run.summary["samples_table"]["nrows"] == LIMIT
    assert run.config["version_torch"] == record["sparsemm"]["versions"]["torch"]
