import json
import os

import pytest

from sparsemm_eval.errors import SparseMMError
from sparsemm_eval.model_wrappers.run_record import complete_results, find_results, read_runs
from tests.model_wrappers.helpers import TASK, answers_of


@pytest.fixture
def folder(build_wrapper, documents, tmp_path):
    """The files of one run."""
    wrapper = build_wrapper(
        "llava_snapkv", budget=40, window=8, batch_size=2, stats_dir=str(tmp_path / "stats")
    )
    answers_of(wrapper, documents)
    wrapper.clean()
    return tmp_path / "stats"


def test_the_record_says_what_was_run_and_measured(folder):
    (run,) = read_runs(folder)
    assert run["model_name"] == "llava_snapkv"
    assert run["compression"]["budget"] == 40
    assert run["versions"]["sparsemm_eval"]
    assert run["dtype"] == "float32"
    assert run["batch_size"] == 2
    assert run["measured"]["effective_budget_min"] <= run["measured"]["effective_budget"] <= 40
    assert {"kv_bytes", "kv_bytes_full", "kv_bytes_peak", "kv_bytes_end"} <= run["measured"].keys()
    assert len(run["kept_mean"]) == 6


def test_every_sample_has_its_own_measurements(folder, documents):
    (path,) = folder.glob("*_samples.rank0.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(record["doc_id"] for record in records) == list(range(len(documents)))
    for record in records:
        assert record["task"] == TASK
        kept = [entry for layer in record["kept"] for entry in layer]
        assert sum(kept) / len(kept) == pytest.approx(record["effective_budget"])
        assert record["kv_bytes"] <= record["kv_bytes_full"] <= record["kv_bytes_peak"] * 10


def test_nothing_is_written_without_a_folder(build_wrapper, documents, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrapper = build_wrapper()
    answers_of(wrapper, documents[:1])
    wrapper.clean()
    assert not list(tmp_path.iterdir())


def test_results_are_found_or_their_lack_is_an_error(tmp_path):
    with pytest.raises(SparseMMError, match="no results"):
        find_results(tmp_path)
    old, new = tmp_path / "a" / "1_results.json", tmp_path / "b" / "2_results.json"
    for moment, path in ((100, old), (200, new)):
        path.parent.mkdir()
        path.write_text("{}")
        os.utime(path, (moment, moment))
    (tmp_path / "b" / "2_samples_x.jsonl").write_text("")
    assert find_results(tmp_path) == [old, new]
    assert find_results(tmp_path, since=150) == [new]
    with pytest.raises(SparseMMError):
        find_results(tmp_path, since=250)


def test_results_can_carry_the_record(tmp_path, folder):
    path = tmp_path / "1_results.json"
    path.write_text('{"results": {"x": 1}}')
    (run,) = read_runs(folder)
    complete_results(path, run)
    record = json.loads(path.read_text())
    assert record["results"] == {"x": 1}
    assert record["sparsemm"]["measured"] == run["measured"]
