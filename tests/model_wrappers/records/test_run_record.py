import json
from pathlib import Path

import pytest

from sparsemm_eval.errors import ConfigError, EvaluationError, JournalError
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


def test_a_full_disk_is_an_error_of_ours(build_wrapper, documents, tmp_path, monkeypatch):
    wrapper = build_wrapper(stats_dir=str(tmp_path / "stats"))
    answers_of(wrapper, documents[:1])
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    wrapper._report._samples = full.open("w")
    answers_of(wrapper, documents[1:2])
    with pytest.raises(JournalError, match=r"stats_dir=.* cannot be written: No space left"):
        wrapper.clean()


def test_two_runs_of_the_same_second_write_files_of_their_own(build_wrapper, documents, tmp_path):
    for _ in range(2):
        wrapper = build_wrapper(stats_dir=str(tmp_path))
        answers_of(wrapper, documents[:1])
        wrapper.clean()
    assert len(list(tmp_path.glob("*_sparsemm_samples.rank0.jsonl"))) == len(read_runs(tmp_path)) == 2


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


def test_skipped_samples_are_no_effective_ones_and_every_score_was_measured(tmp_path):
    path = tmp_path / "1_results.json"
    counts = {"a": {"original": 9, "effective": 5}, "b/c": {"original": 5, "effective": 5}}
    path.write_text(json.dumps({"n-samples": counts}))
    skipped = dict.fromkeys(["a/0", "a/0#1", "a/3", "b/c/0"], "torn")
    run = {"measured": {"samples": 7}, "skipped": skipped}
    contents = complete_results(path, run)
    assert contents["n-samples"]["a"] == {"original": 9, "effective": 3}
    assert contents["n-samples"]["b/c"] == {"original": 5, "effective": 4}
    assert json.loads(path.read_text()) == contents
    path.write_text(json.dumps({"n-samples": counts}))
    with pytest.raises(EvaluationError, match="7 answers were scored, but only 6 were measured"):
        complete_results(path, run | {"measured": {"samples": 6}})
    assert "sparsemm" not in json.loads(path.read_text())
