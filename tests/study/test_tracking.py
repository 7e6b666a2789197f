import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from sparsemm_eval.study.tracking import Limits, NullTracker, TrackingSettings, open_tracker, run_id
from tests.study.offline_runs import read_sessions
from tests.study.tracked_cells import (
    append_answers,
    make_cell,
    result_row,
    sample_rows,
    write_results,
)

OFFLINE = TrackingSettings("offline", project="project", group="tiny")
KEY = "marker0key" * 4
SAMPLES = 70


def below(study):
    """Process ids that run with W&B's folders in this study."""
    running = [(process.pid, process.info["environ"]) for process in psutil.process_iter(["environ"])]
    return [pid for pid, own in running if (own or {}).get("WANDB_CACHE_DIR", "").startswith(str(study))]


@pytest.fixture
def study(tmp_path):
    """A study's folder; no process of W&B outlives the test."""
    yield from guarded(tmp_path)


def guarded(folder):
    folder = folder.resolve() / "study"
    folder.mkdir()
    yield folder
    wait_for(lambda: not below(folder))


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def poll_until(tracker, condition, seconds=60):
    wait_for(lambda: condition(tracker.poll()), seconds)


def poll_until_logged(tracker, samples):
    """The session has taken the point of so many samples."""
    poll_until(tracker, lambda state: state.samples == samples and not tracker._session.busy)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A cell tracked from its start to its results, by a user who has an API key."""
    for folder in guarded(tmp_path_factory.mktemp("tracked")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WANDB_API_KEY", KEY)
            patch.chdir(tmp_path_factory.mktemp("elsewhere"))
            cell, cell_folder = make_cell(folder)
            tracker = open_tracker(OFFLINE, cell, cell_folder, score_of=lambda *_: 0.25)
            append_answers(cell_folder, [0, 1], budget=20.0, kv_bytes=100)
            poll_until_logged(tracker, 2)
            append_answers(cell_folder, [2, 3], budget=40.0, kv_bytes=300)
            poll_until_logged(tracker, 4)
            append_answers(cell_folder, [4])
            write_results(cell_folder)
            state = tracker.finish([result_row(cell)], sample_rows(cell, SAMPLES))
            assert tracker.close() == state
            assert list(Path.cwd().iterdir()) == []
        [run] = read_sessions(folder)
        yield folder, cell, cell_folder, state, run


def test_run_is_named_grouped_and_tagged(tracked):
    _, cell, _, state, run = tracked
    assert run.id == cell["hash"][:16] == run_id(cell) == state.run_id
    assert (run.name, run.group, run.project, run.job_type) == (cell["id"], "tiny", "project", "cell")
    assert set(run.tags) == {"snapkv", "tiny-reader", "pages_qa"}
    assert run.exit_code == 0


def test_config_is_the_cells_and_the_results(tracked):
    _, cell, _, _, run = tracked
    expected = {
        "method": "snapkv",
        "budget": 32,
        "task": "pages_qa",
        "kernel_size": 5,
        "ratio": 0.1,
        "version_torch": "2.15.0",
        "config_hash": cell["hash"],
        "samples_table_holds": f"64 of {SAMPLES} samples, worst disagreements with FullKV first, "
        "then lowest scores",
    }
    assert expected.items() <= run.config.items()


def test_summary_is_the_given_rows(tracked):
    _, cell, _, _, run = tracked
    row = result_row(cell)
    given = {
        name: value
        for name, value in row.items()
        if isinstance(value, (int, float)) and value == value and name not in ("budget", "ratio")
    }
    scores = json.loads(row["scores"])
    expected = {"state": "done", "metric": "exact_match", "pages_qa/metric": "exact_match"}
    expected |= {**given, **{f"pages_qa/{name}": value for name, value in given.items()}}
    expected |= {**scores, **{f"pages_qa/{name}": value for name, value in scores.items()}}
    media = {"head_budgets", "samples_table"}
    assert {name: value for name, value in run.summary.items() if name not in media} == expected


def test_history_has_what_happened_while_the_cell_ran(tracked):
    _, _, _, state, run = tracked
    rows = run.rows("progress/")
    assert [row["progress/samples"] for row in rows] == [2, 4, 5]
    assert [row["progress/effective_budget"] for row in rows] == [20.0, 30.0, pytest.approx(30.4)]
    assert [row["progress/kv_bytes"] for row in rows] == [100.0, 200.0, 360.0]
    assert all(row["progress/samples_per_second"] > 0 for row in rows)
    assert all(row["progress/score/pages_qa"] == 0.25 for row in rows)
    steps = [row["_step"] for row in run.history]
    assert steps == list(range(len(steps)))
    assert steps[-1] == state.step


def test_history_has_the_running_score_over_documents(tracked):
    *_, run = tracked
    rows = run.rows("running_score/")
    assert [row["document"] for row in rows] == list(range(1, SAMPLES + 1))
    odd = [document // 2 / document for document in range(1, SAMPLES + 1)]
    assert [row["running_score/pages_qa"] for row in rows] == pytest.approx(odd)


def test_metrics_have_their_own_axes(tracked):
    *_, run = tracked
    assert run.metrics["progress/*"] == "progress/samples"
    assert run.metrics["running_score/*"] == "document"


def test_table_shows_the_worst_samples_with_thumbnails(tracked):
    *_, run = tracked
    entry = run.summary["samples_table"]
    stored = run.artifacts["run_table", f"run-{run.id}-samples_table"]
    table = json.loads(stored["samples_table.table.json"].read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert len(rows) == entry["nrows"] == 64
    assert [row["identical"] for row in rows[:35]] == [False] * 35
    assert rows[0]["question"] == f"question {rows[0]['doc_id']}"
    assert rows[0]["kept_entries"] == 20.5
    types = table["column_types"]["params"]["type_map"]
    assert "image-file" in json.dumps(types["image"])
    assert "number" in json.dumps(types["score"])
    assert (run.folder / "files" / entry["path"]).is_file()
    for row in rows:
        with Image.open(stored[row["image"]["path"]]) as image:
            assert max(image.size) <= 192
            assert image.size == (row["image"]["width"], row["image"]["height"])


def test_map_of_heads_is_logged(tracked):
    *_, run = tracked
    with Image.open(run.folder / "files" / run.summary["head_budgets"]["path"]) as image:
        assert image.width > 200


def test_results_and_run_record_are_an_artifact(tracked):
    _, cell, cell_folder, _, run = tracked
    stored = run.artifacts["cell-results", cell["id"]]
    assert set(stored) == {"cell.json", "results.json", "run_record.json"}
    [results] = (cell_folder / "lmms").rglob("*_results.json")
    assert stored["results.json"].read_bytes() == results.read_bytes()
    assert json.loads(stored["run_record.json"].read_text())["measured"] == {"effective_budget": 20.5}


def test_wandbs_files_are_below_the_study_and_nothing_is_left_staged(tracked):
    folder, *_, run = tracked
    assert run.folder.parent == folder / "wandb"
    for paths in run.artifacts.values():
        assert all(path.is_relative_to(folder / "wandb") for path in paths.values())
    assert list((folder / "wandb" / "staging").iterdir()) == []


def test_no_key_in_any_file(tracked):
    folder, *_ = tracked
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_state_is_kept_in_the_cell(tracked):
    folder, _, cell_folder, state, run = tracked
    kept = json.loads((cell_folder / "tracking.json").read_text())
    assert (kept["state"], kept["problem"], kept["sessions"], kept["step"]) == (
        "finished",
        None,
        1,
        state.step,
    )
    assert folder / kept["folder"] == run.folder


def test_no_variable_of_wandb_is_left_in_the_runner(tracked):
    assert "WANDB_SERVICE" not in os.environ


def test_resumed_cell_continues_its_run(study):
    cell, folder = make_cell(study)
    first = open_tracker(OFFLINE, cell, folder)
    append_answers(folder, [0, 1])
    poll_until_logged(first, 2)
    append_answers(folder, [2])
    poll_until_logged(first, 3)
    assert first.close(failed="the cell raised").state == "closed"
    append_answers(folder, [3, 4])
    second = open_tracker(OFFLINE, cell, folder)
    poll_until_logged(second, 5)
    state = second.finish([result_row(cell)], sample_rows(cell, 2))
    assert (state.state, state.sessions) == ("finished", 2)
    runs = read_sessions(study)
    assert [run.id for run in runs] == [run_id(cell)] * 2
    assert runs[0].summary == {"state": "failed", "error": "the cell raised"}
    assert runs[0].exit_code == 1
    assert runs[1].summary["state"] == "done"
    assert [row["_step"] for run in runs for row in run.history] == list(range(state.step + 1))
    assert [row["progress/samples"] for run in runs for row in run.rows("progress/")] == [2, 3, 5]


def test_under_an_agent_the_run_is_the_sweeps(study, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "run0fsweep")
    cell, folder = make_cell(study)
    tracker = open_tracker(OFFLINE, cell, folder)
    append_answers(folder, [0])
    poll_until_logged(tracker, 1)
    assert tracker.close(failed="why").run_id == "run0fsweep"
    [run] = read_sessions(study)
    assert (run.id, run.config["cell"]) == ("run0fsweep", cell["id"])


def test_cells_are_tracked_side_by_side(study):
    states = {}

    def track(budget):
        cell, folder = make_cell(study, budget=budget)
        tracker = open_tracker(OFFLINE, cell, folder)
        append_answers(folder, range(4), budget=float(budget))
        poll_until_logged(tracker, 4)
        barrier.wait(timeout=60)
        states[budget] = tracker.finish(
            [result_row(cell, effective_budget=float(budget))], sample_rows(cell, 1)
        )

    budgets = (16, 64)
    barrier = threading.Barrier(len(budgets))
    threads = [threading.Thread(target=track, args=(budget,)) for budget in budgets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {state.state for state in states.values()} == {"finished"}
    runs = {run.config["budget"]: run for run in read_sessions(study)}
    assert set(runs) == set(budgets)
    for budget, run in runs.items():
        assert run.summary["effective_budget"] == budget
        assert [row["progress/effective_budget"] for row in run.rows("progress/")] == [budget]


def test_death_of_the_session_is_reported_and_does_not_raise(study):
    warnings = []
    cell, folder = make_cell(study)
    tracker = open_tracker(OFFLINE, cell, folder, warn=warnings.append)
    poll_until(tracker, lambda state: state.state == "open")
    os.kill(tracker._session.pid, signal.SIGKILL)
    append_answers(folder, [0])
    poll_until(tracker, lambda state: state.state == "failed")
    state = tracker.finish([result_row(cell)], sample_rows(cell, 1))
    assert tracker.close() == state
    [warning] = warnings
    assert cell["id"] in warning
    assert "exit status -9" in warning
    assert "exit status -9" in state.problem
    assert json.loads((folder / "tracking.json").read_text())["problem"] == state.problem
    assert "Traceback" in (folder / "tracking.log").read_text()


def test_folder_that_cannot_be_written(study, capsys):
    cell, folder = make_cell(study)
    (study / "wandb").write_text("a file is in the way")
    tracker = open_tracker(OFFLINE, cell, folder)
    assert tracker.poll().state == "failed"
    assert tracker.finish([result_row(cell)], sample_rows(cell, 1)).state == "failed"
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"W&B: cell {cell['id']} is not tracked any further" in message


def test_lost_network_costs_the_limit_and_nothing_else(study, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    warnings = []
    cell, folder = make_cell(study)
    online = TrackingSettings("online", group="tiny")
    limits = Limits(open=6, results=6, close=6, interrupt=1)
    tracker = open_tracker(online, cell, folder, warn=warnings.append, limits=limits)
    append_answers(folder, [0])
    start = time.monotonic()
    assert tracker.poll().state == "opening"
    assert time.monotonic() - start < 5
    state = tracker.finish([result_row(cell)], sample_rows(cell, 1))
    assert state.state == "failed"
    [warning] = warnings
    assert "W&B" in warning
    assert KEY not in warning + (folder / "tracking.log").read_text()


def test_results_that_cannot_be_logged_are_reported_and_what_was_logged_stays(study):
    warnings = []
    cell, folder = make_cell(study)
    append_answers(folder, [0])
    tracker = open_tracker(OFFLINE, cell, folder, warn=warnings.append)
    state = tracker.finish([result_row(cell)], sample_rows(cell, 2).drop(columns="doc_id"))
    assert state.state == "failed"
    assert "KeyError: 'doc_id'" in warnings[0]
    [run] = read_sessions(study)
    assert [row["progress/samples"] for row in run.history] == [1]
    assert run.exit_code == 255


def test_damaged_journal_is_reported(study):
    warnings = []
    cell, folder = make_cell(study)
    append_answers(folder, [0])
    (folder / "journal" / "pages_qa" / "rank-00000.jsonl").write_text("no json\n")
    tracker = open_tracker(OFFLINE, cell, folder, warn=warnings.append)
    assert tracker.poll().state == "failed"
    assert "JSONDecodeError" in warnings[0]


def test_interrupted_study_does_not_wait_for_the_network(study, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    warnings = []
    cell, folder = make_cell(study)
    limits = Limits(open=500, results=500, close=500, interrupt=1)
    tracker = open_tracker(TrackingSettings("online"), cell, folder, warn=warnings.append, limits=limits)
    assert tracker.close().state == "failed"
    assert "not answered within 1 s" in warnings[0]


def test_killed_study_leaves_a_run_that_ended(study):
    cell, folder = make_cell(study)
    tracker = open_tracker(OFFLINE, cell, folder)
    append_answers(folder, [0])
    poll_until_logged(tracker, 1)
    tracker._session._process.stdin.close()
    tracker._session._process.wait(timeout=60)
    [run] = read_sessions(study)
    assert run.exit_code == 255
    assert [row["progress/samples"] for row in run.history] == [1]


def test_without_wandb_there_is_nothing(study):
    cell, folder = make_cell(study)
    tracker = open_tracker(TrackingSettings(), cell, folder)
    assert isinstance(tracker, NullTracker)
    states = [tracker.poll(), tracker.finish([], sample_rows(cell, 1)), tracker.close(failed="why")]
    assert {state.state for state in states} == {"disabled"}
    assert sorted(path.name for path in study.rglob("*") if path.is_file()) == ["cell.json"]
