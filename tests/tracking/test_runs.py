"""The W&B runs of a study, as W&B's own offline files have them."""

import json
import os
import shutil
from statistics import fmean

import pandas as pd
import pytest
from PIL import Image

from sparsemm_eval.study import results, wandb_runs
from sparsemm_eval.study.report.images import SIDE
from sparsemm_eval.study.wandb_runs import log
from tests.lmms_process import SECRETS, files_with_secrets
from tests.study.study_folder import LAYERS, Spec, answer, effective_budget, grid, write_study
from tests.tracking.offline_runs import read_sessions

DOCUMENTS = 6
KNOBS = {"window": 8, "kernel_size": 5}
SPARSE = Spec("sparsemm", 32, None, KNOBS, ("pages_qa",))
BOTH = Spec("snapkv", 32, None, {"window": 8, "kernel_size": 9}, ("pages_qa", "pages_ocr"))


def prepare(folder, mode="offline"):
    """A study of invented cells, with its tables."""
    write_study(folder, [*grid(budgets=(16, 32)), BOTH], DOCUMENTS)
    record = json.loads((folder / "study.json").read_text())
    record["settings"] |= {
        "wandb": {"mode": mode, "project": "project", "entity": None},
        "knobs": {"window": [8], "kernel_size": [5, 7, 9]},
    }
    (folder / "study.json").write_text(json.dumps(record))
    results.write(folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("studies") / "tiny")


@pytest.fixture
def study(finished):
    """The finished study, without runs of other tests."""
    yield finished
    path = finished / "wandb"
    path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)


def test_a_cell_is_a_run_with_flat_config_and_summary(study, capfd, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    assert log("offline", study, SPARSE.id) == "logged"
    assert capfd.readouterr().err == ""
    [run] = read_sessions(study)
    cell = json.loads((study / "cells" / SPARSE.id / "cell.json").read_text())
    assert (run.id, run.name, run.group, run.job_type) == (cell["hash"][:16], SPARSE.id, "tiny", "cell")
    assert run.tags == ["sparsemm", "tiny-reader", "pages_qa"]
    wanted = {"study": "tiny", "family": "llava", "method": "sparsemm", "budget": 32, "kernel_size": 5}
    wanted |= {"ratio": 0.1, "task": "pages_qa", "configuration": "sparsemm b32 window=8 kernel_size=5"}
    assert wanted.items() <= run.config.items()
    rows = [answer(SPARSE, "pages_qa", doc) for doc in range(DOCUMENTS)]
    score = fmean(logged["exact_match"] for logged, _ in rows)
    budget = fmean(effective_budget(SPARSE, doc) for doc in range(DOCUMENTS))
    for name, value in {"score": score, "exact_match": score, "effective_budget": budget}.items():
        assert run.summary[name] == run.summary[f"pages_qa/{name}"] == pytest.approx(value)
    assert run.summary["kv_bytes_per_sample"] == pytest.approx(fmean(m["kv_bytes"] for _, m in rows))
    assert (run.summary["state"], run.summary["samples"], run.exit_code) == ("done", DOCUMENTS, 0)
    assert run.summary["ci_low"] <= score <= run.summary["ci_high"]
    over = run.rows("running_score/")
    assert [row["document"] for row in over] == list(range(1, DOCUMENTS + 1))
    assert over[-1]["running_score/pages_qa"] == pytest.approx(score)
    assert run.metrics["running_score/*"] == "document"
    assert run.rows("head_budgets")
    assert run.rows("samples_table")[0]["samples_table"]["nrows"] == DOCUMENTS
    files = run.artifacts["cell-results", SPARSE.id]
    assert set(files) == {"cell.json", "results.json"}
    assert json.loads(files["results.json"].read_text())["sparsemm"]["kept_mean"].__len__() == LAYERS
    table = run.artifacts["run_table", f"run-{run.id}-samples_table"]
    pictures = [path for name, path in table.items() if name.endswith(".png")]
    assert len(pictures) == DOCUMENTS
    assert max(Image.open(path).size[0] for path in pictures) <= SIDE
    assert files_with_secrets(study, "") == []


def test_several_tasks_of_a_cell_are_kept_apart(study):
    assert log("offline", study, BOTH.id) == "logged"
    [run] = read_sessions(study)
    assert run.summary["samples"] == 2 * DOCUMENTS
    assert "score" not in run.summary
    assert run.summary["pages_ocr/character_accuracy"] == run.summary["pages_ocr/score"]
    assert run.summary["effective_budget"] == 32


def test_a_failed_cell_says_why(study):
    failed = next(path.parent for path in study.glob("cells/*/status.json") if "failed" in path.read_text())
    assert log("offline", study, failed.name) == "logged"
    [run] = read_sessions(study)
    assert (run.summary["state"], run.exit_code) == ("failed", 1)
    assert "out of memory" in run.summary["error"]
    assert run.history == []


def test_a_cell_that_is_run_again_goes_on_with_its_run(study):
    for _ in range(2):
        assert log("offline", study, SPARSE.id) == "logged"
    first, second = read_sessions(study)
    assert first.id == second.id


def test_the_studys_run_is_the_comparison(study):
    assert log("offline", study) == "logged"
    [run] = read_sessions(study)
    assert (run.job_type, run.name) == ("study", "tiny")
    cells = pd.read_parquet(study / "results.parquet")
    assert run.summary["cells"] == cells["cell"].nunique()
    assert run.summary["cells_done"] == cells[cells["state"] == "done"]["cell"].nunique()
    [row] = run.rows("comparison")
    table = json.loads((run.folder / "files" / row["comparison"]["path"]).read_text())
    found = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
    keys = {(entry["task"], entry["label"], entry["budget"]) for entry in found}
    assert len(keys) == len(found)  # nothing is averaged over knobs or budgets
    assert ("pages_qa", "SparseMM, kernel_size 7", 16) in keys
    known = cells.set_index(["cell", "task"])
    [sparse] = [
        entry
        for entry in found
        if (entry["task"], entry["label"], entry["budget"]) == ("pages_qa", "SparseMM, kernel_size 5", 32)
    ]
    for name in ("score", "ci_low", "ci_high", "effective_budget"):
        assert sparse[name] == pytest.approx(known.loc[(SPARSE.id, "pages_qa"), name])
    assert run.rows("equal_effective_budgets")
    assert run.rows("paired_differences")
    assert run.rows("figures/accuracy-tiny-reader")
    drawn = [key for row in run.history for key in row if key.startswith("curves/tiny-reader/")]
    assert {key.split("/")[2].removesuffix("_table") for key in drawn} >= {"pages_qa", "pages_ocr"}
    assert set(run.artifacts["study-results", "tiny"]) == {"results.parquet", "results.csv", "study.json"}


def test_what_goes_wrong_is_told_and_costs_nothing(study, capsys, monkeypatch):
    with monkeypatch.context() as hurry:
        hurry.setitem(wandb_runs.LIMITS, "offline", 0.01)
        assert log("offline", study, SPARSE.id) == "W&B took more than 0.01 s"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    shutil.rmtree(study / "wandb", ignore_errors=True)
    (study / "wandb").write_text("")
    problem = log("offline", study, SPARSE.id)
    assert "a folder that can be written to" in problem
    told = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"W&B: cell {SPARSE.id} was not logged: ") for line in told)
    assert len(told) == 2


def test_nothing_is_logged_unless_asked(study):
    assert log("disabled", study, SPARSE.id) is None
    assert not list((study / "wandb").glob("*run*"))
    assert os.environ.get("WANDB_MODE") is None
