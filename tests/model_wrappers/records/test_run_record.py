import json

import pytest

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.model_wrappers.records.run_record import complete_results, read_runs
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
    assert {"kv_bytes_per_sample", "kv_bytes_peak_per_call", "kv_bytes_reserve_per_sample"} <= run[
        "measured"
    ].keys()
    assert len(run["kept_mean"]) == 6


def test_every_sample_has_its_own_measurements(folder, documents):
    (path,) = folder.glob("*_samples.rank0.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(record["doc_id"] for record in records) == list(range(len(documents)))
    for record in records:
        assert record["task"] == TASK
        kept = [entry for layer in record["kept"] for entry in layer]
        assert sum(kept) / len(kept) == pytest.approx(record["effective_budget"])
        assert record["kv_bytes"] <= record["kv_bytes_full"] <= record["kv_bytes_peak_per_call"] * 10


def test_nothing_is_written_without_a_folder(build_wrapper, documents, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrapper = build_wrapper()
    answers_of(wrapper, documents[:1])
    wrapper.clean()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_is_refused(build_wrapper, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="stats_dir"):
        build_wrapper(stats_dir=str(tmp_path / "file" / "stats"))


def test_results_can_carry_the_record(tmp_path, folder):
    path = tmp_path / "1_results.json"
    path.write_text('{"results": {"x": 1}}')
    (run,) = read_runs(folder)
    complete_results(path, run)
    record = json.loads(path.read_text())
    assert record["results"] == {"x": 1}
    assert record["sparsemm"]["measured"] == run["measured"]
