import json
from pathlib import Path

import pytest

from sparsemm_eval.errors import EvaluationError
from sparsemm_eval.lmms.arguments import Run
from sparsemm_eval.lmms.provenance import complete, now
from sparsemm_eval.lmms.results import ResultsFile


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "20260102_030405_results.json"
    path.write_text(json.dumps({"results": {}}))
    return ResultsFile(path, {"results": {}})


def run_of(model_args):
    return Run("llava_snapkv", model_args, ("pages_qa",), Path("out"))


def put_record(folder, name, model="llava_snapkv"):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}_sparsemm_run.json").write_text(json.dumps({"model_name": model, "run": name}))


def test_nothing_is_done_unless_asked(results):
    assert complete(results, run_of("budget=8"), now()) is results


def test_the_record_of_the_run_is_added(results, tmp_path):
    start = now()
    put_record(tmp_path / "stats", "mine")
    put_record(tmp_path / "stats", "other", model="llava_fullkv")
    completed = complete(results, run_of(f"budget=8,stats_dir={tmp_path / 'stats'},window=4"), start)
    assert completed.contents["sparsemm"]["run"] == "mine"
    assert json.loads(results.path.read_text()) == completed.contents


def test_an_old_record_does_not_count(results, tmp_path):
    put_record(tmp_path / "stats", "mine")
    with pytest.raises(EvaluationError, match="no run record"):
        complete(results, run_of(f"stats_dir={tmp_path / 'stats'}"), now() + 60)
