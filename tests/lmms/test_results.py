import json
import os
from pathlib import Path

import pytest

from sparsemm_eval.errors import EvaluationError
from sparsemm_eval.lmms.arguments import Run
from sparsemm_eval.lmms.results import ResultsFile, find, snapshot, with_record

NAME = "20260102_030405_results.json"


def contents(tasks=("a",), model="m", model_args="x=1", **more):
    results = {task: {"alias": task, "samples": 2, "acc,none": 0.5, "acc_stderr,none": 0.1} for task in tasks}
    return {"config": {"model": model, "model_args": model_args}, "results": results, **more}


def put(folder, record, name=f"p/{NAME}"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(record if isinstance(record, str) else json.dumps(record))
    return path


def run_of(folder, *tasks):
    return Run("m", "x=1", tasks, folder)


def test_finds_what_is_new_and_complete(tmp_path):
    put(tmp_path, contents(), f"p/20250102_030405_{NAME[16:]}")
    before = snapshot(tmp_path)
    path = put(tmp_path, contents(("a", "b")))
    file = find(run_of(tmp_path, "a", "b"), before)
    assert file.path == path
    assert file.scores("a") == {"acc": 0.5}


def test_a_rewritten_file_is_new(tmp_path):
    path = put(tmp_path, contents())
    os.utime(path, ns=(1, 1))
    before = snapshot(tmp_path)
    put(tmp_path, contents())
    assert find(run_of(tmp_path, "a"), before).path == path


@pytest.mark.parametrize(
    "name", ["submissions/mmbench_en_dev_results.json", "results/ocrbench_results.json", "p/other.json"]
)
def test_other_files_of_tasks_are_no_results(tmp_path, name):
    put(tmp_path, [1, 2], name)
    with pytest.raises(EvaluationError, match="wrote no results"):
        find(run_of(tmp_path, "a"), {})


@pytest.mark.parametrize("change", [{"model": "other"}, {"model_args": "x=2"}])
def test_results_of_another_run_do_not_count(tmp_path, change):
    put(tmp_path, contents(**change))
    with pytest.raises(EvaluationError, match="wrote no results"):
        find(run_of(tmp_path, "a"), {})


def test_old_results_do_not_count(tmp_path):
    put(tmp_path, contents())
    with pytest.raises(EvaluationError, match="wrote no results"):
        find(run_of(tmp_path, "a"), snapshot(tmp_path))


def test_a_missing_task_is_named(tmp_path):
    put(tmp_path, contents(("a",)))
    with pytest.raises(EvaluationError, match="no score for b"):
        find(run_of(tmp_path, "a", "b"), {})


@pytest.mark.parametrize("value", [float("nan"), "N/A", None])
def test_a_task_without_a_number_has_no_score(tmp_path, value):
    record = contents()
    record["results"]["a"]["acc,none"] = value
    put(tmp_path, record)
    with pytest.raises(EvaluationError, match="no score for a"):
        find(run_of(tmp_path, "a"), {})


def test_a_torn_file_is_an_error(tmp_path):
    put(tmp_path, '{"results": {')
    with pytest.raises(EvaluationError, match="not a complete results file"):
        find(run_of(tmp_path, "a"), {})


@pytest.mark.parametrize("name", ["all", "tagged", "a*", "inner"])
def test_groups_tags_and_patterns_stand_for_tasks(tmp_path, name):
    groups = {"all": ["inner", "b"], "inner": ["a"], "a": [], "b": []}
    configs = {"a": {"tag": ["tagged"]}, "b": {"tag": "other"}}
    record = contents(("a", "b"), group_subtasks=groups, configs=configs)
    record["results"]["all"] = {" ": " ", "alias": "all"}
    put(tmp_path, record)
    file = find(run_of(tmp_path, name), {})
    assert file.tasks_of(name) == (["a", "b"] if name == "all" else ["a"])


def test_a_group_with_an_unscored_member_is_incomplete(tmp_path):
    record = contents(("a",), group_subtasks={"all": ["a", "b"]})
    put(tmp_path, record)
    with pytest.raises(EvaluationError, match="no score for b"):
        find(run_of(tmp_path, "all"), {})


def test_a_missing_folder_has_no_results(tmp_path):
    assert snapshot(Path(tmp_path, "nowhere")) == {}


@pytest.fixture
def results(tmp_path):
    path = tmp_path / NAME
    path.write_text(json.dumps({"results": {}}))
    return ResultsFile(path, {"results": {}})


def recorded(model_args):
    return Run("llava_snapkv", model_args, ("pages_qa",), Path("out"))


def put_record(folder, name, results):
    folder.mkdir(exist_ok=True)
    record = {"run": name, "results_file": str(results), "skipped": {}, "measured": {"samples": 0}}
    (folder / f"{name}_sparsemm_run.json").write_text(json.dumps(record))


def test_nothing_is_done_unless_asked(results):
    assert with_record(results, recorded("budget=8")) is results


@pytest.mark.parametrize("folder", ["{}", "~"])
def test_the_record_that_names_the_results_is_added(folder, results, tmp_path, monkeypatch):
    """The other entry of a configuration file shares folder, model and second."""
    monkeypatch.setenv("HOME", str(tmp_path))
    put_record(tmp_path / "stats", "mine", results.path)
    put_record(tmp_path / "stats", "other", tmp_path / "elsewhere" / results.path.name)
    completed = with_record(results, recorded(f"budget=8,stats_dir={folder.format(tmp_path)}/stats,window=4"))
    assert completed.contents["sparsemm"]["run"] == "mine"
    assert json.loads(results.path.read_text()) == completed.contents


def test_another_evaluations_record_does_not_count(results, tmp_path):
    put_record(tmp_path / "stats", "other", tmp_path / "elsewhere" / results.path.name)
    with pytest.raises(EvaluationError, match="no run record"):
        with_record(results, recorded(f"stats_dir={tmp_path / 'stats'}"))
