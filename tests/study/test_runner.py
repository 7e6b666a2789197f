"""The runner on stand-in cells: order, retries, isolation, resumption, races, kills, full disks."""

import dataclasses
import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.files import FileLock
from sparsemm_eval.study import cell_run, display, wandb_runs
from sparsemm_eval.study import folder as folder_module
from sparsemm_eval.study import runner as runner_module
from sparsemm_eval.study.folder import CellFolder, StudyFolder
from sparsemm_eval.study.runner import on_cpu, on_gpus, write_tables
from tests.study import running
from tests.study.running import how, load, runner, table, write_study


@pytest.fixture
def study_file(tmp_path):
    return write_study(tmp_path / "study.yaml")


def behave(monkeypatch, **behaviour):
    monkeypatch.setenv("FAKE_CELL", json.dumps(behaviour))


def status_of(root, word):
    found = [json.loads(path.read_text()) for path in sorted(root.glob(f"cells/*{word}*/status.json"))]
    assert found
    return found


class Events:
    def __init__(self):
        self.started_, self.ended_ = [], []

    def started(self, cell):
        self.started_.append(cell)

    def ended(self, cell, status):
        self.ended_.append((cell.id, status["state"]))


def test_all_cells_are_run_fullkv_first(study_file, tmp_path):
    events, collected = Events(), []
    outcome = runner(study_file, watcher=events, collect=lambda *given: collected.append(given)).run()
    assert outcome.complete
    assert set(outcome.states.values()) == {"done"}
    assert len(outcome.states) == 2 * (1 + 2 + 2)
    assert [cell.method for cell in events.started_[:2]] == ["fullkv", "fullkv"]
    rows = table(tmp_path / "out")
    assert set(rows) == set(outcome.states)
    for status in status_of(tmp_path / "out", "kv"):
        assert status["attempts"] == 1
        assert status["documents"] in (5, 10)
        assert status["returncode"] == 0
    assert collected[-1] == (tmp_path / "out", True)
    assert all(StudyFolder(tmp_path / "out").cell(name).holder() is None for name in rows)


def test_done_cells_are_not_run_again(study_file, tmp_path):
    runner(study_file).run()
    logs = {path: path.read_bytes() for path in (tmp_path / "out").glob("cells/*/log.txt")}
    assert len(logs) == 10
    assert runner(study_file).run().complete
    assert {path: path.read_bytes() for path in logs} == logs
    # Without its results file a cell is not done, whatever its status says.
    results = next((tmp_path / "out").glob("cells/*/lmms/*/*_results.json"))
    results.unlink()
    assert runner(study_file).run().complete
    assert results.is_file()
    assert sum(path.read_bytes() != content for path, content in logs.items()) == 1


def test_a_failing_cell_is_retried_and_loses_nothing_of_the_others(study_file, tmp_path, monkeypatch):
    behave(monkeypatch, fail={"snapkv": 1, "sparsemm": 99})
    outcome = runner(study_file, workers=2).run()
    assert not outcome.complete
    for identifier, state in outcome.states.items():
        assert state == ("failed" if "sparsemm" in identifier else "done"), identifier
    for status in status_of(tmp_path / "out", "snapkv"):
        assert (status["attempts"], status["error"]) == (2, None)
    for status in status_of(tmp_path / "out", "sparsemm"):
        assert (status["attempts"], status["returncode"]) == (2, 3)
        assert status["error"] == "exit status 3: ValueError: this cell was told to fail"
        assert status["results"] is None
    # Retries are bounded over runs, too …
    assert runner(study_file).run().states == outcome.states
    assert {status["attempts"] for status in status_of(tmp_path / "out", "sparsemm")} == {2}
    # … until somebody asks for them.
    behave(monkeypatch)
    assert runner(study_file, retry_failed=True).run().complete
    assert {status["attempts"] for status in status_of(tmp_path / "out", "sparsemm")} == {1}


def test_what_comes_of_logging_is_kept_and_costs_no_cell_its_results(
    study_file, tmp_path, monkeypatch, capsys
):
    behave(monkeypatch, fail={"snapkv": 5})
    monkeypatch.setitem(wandb_runs.LIMITS, "offline", 0.01)
    outcome = runner(study_file, how_=how(0, wandb="offline")).run()
    assert sorted(outcome.states.values()) == ["done"] * 6 + ["failed"] * 4
    for status in status_of(tmp_path / "out", ""):
        assert status["wandb"] == "W&B took more than 0.01 s"
    assert capsys.readouterr().err.count("was not logged") == 10


def test_a_process_that_ends_well_without_results_has_failed(study_file, tmp_path):
    quiet = how(0, command=lambda cell, arguments, nproc: [sys.executable, "-c", "pass"])
    outcome = runner(study_file, how_=quiet).run()
    assert set(outcome.states.values()) == {"failed"}
    assert "wrote no results" in status_of(tmp_path / "out", "fullkv")[0]["error"]


def test_placement_on_gpus_and_cores(study_file, tmp_path, monkeypatch):
    assert on_gpus(["0", "1", "2", "3"], 2) == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]
    for gpus, nproc in ((["0", "0"], 1), ([""], 1), (["0", "1", "2"], 2)):
        with pytest.raises(ConfigError, match="--gpus"):
            on_gpus(gpus, nproc)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert on_cpu(3) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert on_cpu(1) == [{}]
    study, cells, place = load(study_file)
    place.prepare(study, cells)
    placed = runner(study_file)
    placed.workers = on_gpus(["4", "7"], 1)
    assert placed.run().complete
    seen = {
        json.loads(path.read_text())["CUDA_VISIBLE_DEVICES"]
        for path in (tmp_path / "out").glob("cells/*/environment.json")
    }
    assert seen <= {"4", "7"}
    assert seen


def test_the_command_of_a_cell_takes_the_number_of_processes(study_file):
    _, cells, _ = load(study_file)
    line = cell_run.sparsemm_eval_command(cells[0], ["--model", "m"], 3)
    assert line[1:] == ["-m", "sparsemm_eval", "eval", "--nproc", "3", "--model", "m"]


def test_an_interrupted_runner_ends_its_cell_and_leaves_it_for_later(study_file, tmp_path, monkeypatch):
    behave(monkeypatch, hang=["fullkv"])
    working = runner(study_file)
    thread = threading.Thread(target=lambda: results.append(working.run()))
    results = []
    thread.start()
    until(lambda: list((tmp_path / "out").glob("cells/*/seen")) or fakes(tmp_path))
    working.stop.set()
    thread.join(60)
    assert fakes(tmp_path) == []
    assert results[0].interrupted
    assert not results[0].complete
    assert status_of(tmp_path / "out", "fullkv")[0]["attempts"] == 0
    behave(monkeypatch)
    assert runner(study_file).run().complete


def until(condition, patience=60):
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def fakes(folder):
    """Running stand-in cells of a folder."""
    found = psutil.process_iter(["cmdline"])
    lines = [" ".join(process.info["cmdline"] or ()) for process in found]
    return [line for line in lines if "fake_cell.py" in line and str(folder) in line]


def start(study_file, workers=1, delay=0.01):
    environment = {**os.environ, "FAKE_CELL": json.dumps({"delay": delay})}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.study.running", str(study_file), str(workers)],
        env=environment,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.slow
def test_killed_at_random_moments_a_study_ends_with_the_same_table(tmp_path):
    calm = write_study(tmp_path / "calm" / "study.yaml", limit=12)
    assert runner(calm).run().complete
    killed = write_study(tmp_path / "killed" / "study.yaml", limit=12)
    moments = random.Random(7)
    kills = 0
    for _ in range(40):
        process = start(killed)
        try:
            assert process.wait(0.4 + moments.random()) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills >= 2
    assert runner(killed).run().complete
    assert table(tmp_path / "killed" / "out") == table(tmp_path / "calm" / "out")


def test_racing_runners_of_which_some_are_killed(tmp_path):
    calm = write_study(tmp_path / "calm" / "study.yaml")
    assert runner(calm).run().complete
    race = write_study(tmp_path / "race" / "study.yaml")
    processes_ = [start(race, workers=1 + index % 2) for index in range(4)]
    time.sleep(1.5)
    for process in processes_[:2]:
        process.kill()
    assert [process.wait(120) for process in processes_[2:]] == [0, 0]
    for process in processes_[:2]:
        process.wait()
    assert table(tmp_path / "race" / "out") == table(tmp_path / "calm" / "out")
    for status in status_of(tmp_path / "race" / "out", "kv"):
        assert status["attempts"] == 1
    # A doubled start would have found its journal locked, and said so.
    assert not [
        path for path in (tmp_path / "race").rglob("log.txt") if "in use by another" in path.read_text()
    ]


def test_a_killed_runner_frees_its_cell_when_the_cells_process_is_gone(study_file, tmp_path):
    process = start(study_file, delay=0.5)
    place = StudyFolder(tmp_path / "out")
    until(lambda: place.record.is_file() and any(cell.answers() for cell in cells_of(place)))
    busy = next(cell for cell in cells_of(place) if cell.answers())
    assert busy.holder() == f"process {process.pid} on {socket.gethostname()}"
    assert busy.state("any", busy.status()) == "running"
    process.kill()
    process.wait()
    until(lambda: busy.holder() is None)
    assert fakes(tmp_path) == []
    assert busy.state("any", busy.status()) == "interrupted"
    assert busy.status()["seconds"] is not None


def cells_of(place):
    return [place.cell(identifier) for identifier in place.settings()["cells"]]


def test_a_process_that_outlives_its_runner_keeps_the_cell(tmp_path):
    cell = CellFolder(tmp_path / "cell")
    with cell.owned() as lock:
        child = subprocess.Popen(["sleep", "600"], pass_fds=(lock,))
    with cell.owned() as second:
        assert second is None
    child.kill()
    child.wait()
    with cell.owned() as third:
        assert third is not None
        with cell.owned() as again:
            assert again is None


def test_a_study_grows_and_only_what_is_new_is_run(study_file, tmp_path):
    runner(study_file).run()
    known = {path.parent.name: path.read_bytes() for path in (tmp_path / "out").glob("cells/*/log.txt")}
    write_study(study_file, methods="[fullkv, snapkv, sparsemm, adakv]", budgets="[16, 64]")
    outcome = runner(study_file).run()
    assert outcome.complete
    assert len(outcome.states) == 2 * (1 + 3 * 2)
    for identifier, log in known.items():
        assert (tmp_path / "out" / "cells" / identifier / "log.txt").read_bytes() == log
    place = StudyFolder(tmp_path / "out")
    assert {"-b32-" in name for name in place.others()} == {True}
    assert len(place.others()) == 4


def test_cells_of_other_content_are_stale_and_run_again(study_file, tmp_path, monkeypatch):
    runner(study_file).run()
    changed = dataclasses.replace(running.FACTS, head_scores_key=lambda given, pretrained: "changed")
    monkeypatch.setattr(running, "FACTS", changed)
    study, cells, place = load(study_file)
    place.prepare(study, cells)
    folders = [(cell, place.cell(cell.id)) for cell in cells]
    states = {cell.id: folder.state(cell.hash, folder.status()) for cell, folder in folders}
    assert {"sparsemm" in name for name, state in states.items() if state == "stale"} == {True}
    assert {"sparsemm" in name for name, state in states.items() if state == "done"} == {False}
    stale = next(cell for cell in cells if cell.method == "sparsemm")
    assert display.view(place.cell(stale.id), stale).error == (
        "done before a change of head_scores; it will be run again"
    )
    events = Events()
    assert runner(study_file, watcher=events).run().complete
    assert {cell.method for cell in events.started_} == {"sparsemm"}


def test_seconds_add_up_over_resumptions(study_file, tmp_path):
    study, cells, place = load(study_file)
    place.prepare(study, cells)
    first = place.cell(cells[0].id)
    first.write_status({"state": "running", "hash": cells[0].hash, "seconds": 100.0, "attempts": 0})
    assert runner(study_file).run().complete
    assert 100 < first.status()["seconds"] < 160
    assert place.cell(cells[1].id).status()["seconds"] < 60


def test_a_cell_that_somebody_else_runs_is_left_to_them(study_file):
    study, cells, place = load(study_file)
    place.prepare(study, cells)
    with place.cell(cells[0].id).owned():
        outcome = runner(study_file, wait=False).run()
        assert outcome.states[cells[0].id] == "pending"
        assert set(outcome.states.values()) == {"pending", "done"}
    assert runner(study_file).run().complete


def test_a_lost_update_of_the_tables_is_a_problem(study_file, tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module, "PATIENCE", 0.1)
    (tmp_path / "out").mkdir()
    with FileLock(str(tmp_path / "out" / "results.lock")):
        outcome = runner(study_file, collect=lambda *_: None).run()
    assert set(outcome.states.values()) == {"done"}
    assert not outcome.complete
    assert "results.lock" in outcome.problems[0]


def test_a_cell_that_finds_the_disk_full_says_so(study_file, tmp_path, monkeypatch):
    behave(monkeypatch, full=["snapkv"])
    outcome = runner(study_file).run()
    for identifier, state in outcome.states.items():
        assert state == ("failed" if "snapkv" in identifier else "done")
    assert "the disk is full" in status_of(tmp_path / "out", "snapkv")[0]["error"]


def test_a_status_that_cannot_be_written_leaves_the_old_one(study_file, tmp_path, monkeypatch):
    """As on a full disk, for the files of one cell."""
    study, cells, place = load(study_file)
    place.prepare(study, cells)
    original = folder_module.write_json_atomically

    def full(path, record):
        if "snapkv" in str(path) and path.name == "status.json" and record["state"] in ("done", "failed"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, record)

    monkeypatch.setattr(folder_module, "write_json_atomically", full)
    outcome = runner(study_file).run()
    for identifier, state in outcome.states.items():
        assert state == ("failed" if "snapkv" in identifier else "done")
        assert ("the disk is full" in outcome.errors.get(identifier, "")) == ("snapkv" in identifier)
    assert {status["state"] for status in status_of(tmp_path / "out", "snapkv")} == {"running"}
    monkeypatch.undo()
    assert runner(study_file).run().complete


def test_tables_that_cannot_be_written_are_a_problem_and_not_a_crash(study_file):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    outcome = runner(study_file, collect=full).run()
    assert set(outcome.states.values()) == {"done"}
    assert not outcome.complete
    assert "disk is full" in outcome.problems[0]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def _fill(path):
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(b"x" * 4096)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    return
                raise


def test_a_full_disk_is_reported_and_corrupts_nothing(tmp_path, small_disk):
    calm = write_study(tmp_path / "calm" / "study.yaml")
    assert runner(calm).run().complete
    study_file = write_study(tmp_path / "study.yaml", output=small_disk / "out")
    study, cells, place = load(study_file)
    place.prepare(study, cells)
    first = runner(study_file, cells=lambda all_: all_[:2]).run()
    assert first.complete
    before = table(small_disk / "out")
    ballast = small_disk / "ballast"
    _fill(ballast)
    outcome = runner(study_file, collect=lambda root, _: (root / "results.csv").write_text("x" * 9999)).run()
    failed = [identifier for identifier, state in outcome.states.items() if state == "failed"]
    assert len(failed) == len(cells) - 2
    assert all("the disk is full" in outcome.errors[identifier] for identifier in failed), outcome.errors
    assert "disk is full" in outcome.problems[0]
    assert table(small_disk / "out") == before
    for path in small_disk.rglob("*.json"):
        json.loads(path.read_text())
    assert not list(small_disk.rglob("*.tmp"))
    ballast.unlink()
    assert runner(study_file, retry_failed=True).run().complete
    expected = table(tmp_path / "calm" / "out")
    assert {key: value[0] for key, value in table(small_disk / "out").items()} == {
        key: value[0] for key, value in expected.items()
    }


def test_two_collecting_runners_take_turns(study_file, tmp_path):
    runner(study_file).run()
    place, inside = StudyFolder(tmp_path / "out"), []

    def collect(root, samples):
        inside.append(1)
        assert len(inside) == 1
        time.sleep(0.05)
        inside.pop()

    threads = [
        threading.Thread(target=lambda: problems.append(write_tables(place, collect, False)))
        for _ in range(4)
    ]
    problems = []
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == [None] * 4


def test_clearing_results_keeps_the_journal(tmp_path):
    cell = CellFolder(tmp_path)
    for name in ("journal/t/rank-00000.jsonl", "stats/a.json", "lmms/m/b.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}\n")
    cell.clear_results()
    assert [path.name for path in tmp_path.rglob("*.json*")] == ["rank-00000.jsonl"]
    assert cell.answers() == 1
