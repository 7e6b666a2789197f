"""The runner on stand-in cells: order, retries, isolation, resumption, races, kills, full disks."""

import dataclasses
import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.study import cell_run, claims, processes
from sparsemm_eval.study import folder as folder_module
from sparsemm_eval.study.folder import CellFolder, StudyFolder
from sparsemm_eval.study.one_cell import run_one
from sparsemm_eval.study.table_files import write_tables
from sparsemm_eval.study.wandb_runs import Tracking
from sparsemm_eval.study.workers import Workers
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

    def refresh(self):
        pass


def test_all_cells_are_run_fullkv_first_and_the_others_compared_with_it(study_file, tmp_path):
    events, collected = Events(), []
    outcome = runner(study_file, watcher=events, collect=collected.append).run()
    assert outcome.complete
    assert set(outcome.states.values()) == {"done"}
    assert len(outcome.states) == 2 * (1 + 2 + 2)
    assert [cell.method for cell in events.started_[:2]] == ["fullkv", "fullkv"]
    rows = table(tmp_path / "out")
    assert set(rows) == set(outcome.states)
    for identifier, (_, without_reference, _) in rows.items():
        assert without_reference == ("fullkv" in identifier)
    for status in status_of(tmp_path / "out", "kv"):
        assert status["attempts"] == 1
        assert status["documents"] in (5, 10)
        assert status["returncode"] == 0
    assert {status["agreement"] for status in status_of(tmp_path / "out", "sparsemm")} == {"yes"}
    assert collected[-1] == tmp_path / "out"
    assert not list((tmp_path / "out").glob("cells/*/claim.json"))


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


def test_what_comes_of_logging_is_kept_and_costs_no_cell_its_results(study_file, tmp_path, monkeypatch):
    behave(monkeypatch, fail={"snapkv": 5})
    warnings = []
    given = how(0, tracking=Tracking("offline", warnings.append, limit=0.01))
    outcome = runner(study_file, how_=given).run()
    assert sorted(outcome.states.values()) == ["done"] * 6 + ["failed"] * 4
    for status in status_of(tmp_path / "out", ""):
        assert status["wandb"] == "W&B took more than 0.01 s"
    assert len(warnings) == 10


def test_a_failed_reference_leaves_the_others_without_agreement(study_file, tmp_path, monkeypatch):
    behave(monkeypatch, fail={"fullkv": 99})
    outcome = runner(study_file).run()
    assert sorted(set(outcome.states.values())) == ["done", "failed"]
    for status in status_of(tmp_path / "out", "sparsemm"):
        assert status["state"] == "done"
        assert "fullkv" in status["agreement"]
        assert "failed" in status["agreement"]
    log = next((tmp_path / "out").glob("cells/*sparsemm*/log.txt")).read_text()
    assert "without agreement: the reference" in log


def test_cells_without_their_reference_among_the_chosen_ones(study_file, tmp_path):
    outcome = runner(study_file, cells=lambda all_: [cell for cell in all_ if cell.method == "snapkv"]).run()
    assert set(outcome.states.values()) == {"done"}
    assert {"is not done" in status["agreement"] for status in status_of(tmp_path / "out", "snapkv")} == {
        True
    }


def test_a_process_that_ends_well_without_results_has_failed(study_file, tmp_path):
    quiet = how(0, command=lambda cell, arguments, nproc: [sys.executable, "-c", "pass"])
    outcome = runner(study_file, how_=quiet).run()
    assert set(outcome.states.values()) == {"failed"}
    assert "wrote no results" in status_of(tmp_path / "out", "fullkv")[0]["error"]


def test_placement_on_gpus_and_cores(study_file, tmp_path, monkeypatch):
    assert [dict(one) for one in Workers.on_gpus(["0", "1", "2", "3"], 2).environments] == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]
    for gpus, nproc in ((["0", "0"], 1), ([""], 1), (["0", "1", "2"], 2)):
        with pytest.raises(ConfigError, match="--gpus"):
            Workers.on_gpus(gpus, nproc)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [dict(one) for one in Workers.on_cpu(3).environments] == [{"OMP_NUM_THREADS": "2"}] * 3
    assert [dict(one) for one in Workers.on_cpu(1).environments] == [{}]
    study, cells, place = load(study_file)
    place.prepare(study, cells)
    placed = runner(study_file)
    placed.workers = Workers.on_gpus(["4", "7"], 1)
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
    deadline = time.monotonic() + 60
    while not any("child" in path.read_text() for path in (tmp_path / "out").glob("cells/*/claim.json")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    token = json.loads(next((tmp_path / "out").glob("cells/*/claim.json")).read_text())["token"]
    working.stop.set()
    thread.join(60)
    assert processes.marked(token) == []
    assert results[0].interrupted
    assert not results[0].complete
    assert status_of(tmp_path / "out", "fullkv")[0]["attempts"] == 0
    behave(monkeypatch)
    assert runner(study_file).run().complete


def start(study_file, workers=1, delay=0.01):
    environment = {**os.environ, "FAKE_CELL": json.dumps({"delay": delay})}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.study.running", str(study_file), str(workers)],
        env=environment,
        cwd=Path(__file__).parents[2],
    )


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


def test_a_claim_that_was_taken_over_ends_the_cell_here(study_file, monkeypatch):
    behave(monkeypatch, hang=["fullkv"])
    study, cells, place = load(study_file)
    place.prepare(study, cells)
    claim = claims.acquire(place.cell(cells[0].id).root)
    monkeypatch.setattr(claims.Claim, "beat", lambda self: False)
    with pytest.raises(cell_run.ClaimLost):
        cell_run.run(place, cells[0], claim, how(heartbeat=0.0), threading.Event())
    assert processes.marked(claim.token) == []


def test_another_study_in_the_folder_is_refused_and_named(study_file, tmp_path):
    runner(study_file).run()
    other = write_study(tmp_path / "other.yaml", budgets="[16, 64]")
    study, cells, place = load(other)
    with pytest.raises(ConfigError, match=r"budgets: \[16, 32\] there, \[16, 64\] here"):
        place.prepare(study, cells)
    assert json.loads((tmp_path / "out" / "study.json").read_text())["settings"]["budgets"] == [16, 32]
    assert (tmp_path / "out" / "study.yaml").read_text() == study_file.read_text()
    patient = write_study(tmp_path / "patient.yaml", retries=5)
    study, cells, place = load(patient)
    place.prepare(study, cells)
    assert json.loads((tmp_path / "out" / "study.json").read_text())["settings"]["retries"] == 5


def test_head_scores_with_other_content_are_another_study(study_file, monkeypatch):
    runner(study_file).run()
    changed = dataclasses.replace(running.FACTS, head_scores_key=lambda given, pretrained: "changed")
    monkeypatch.setattr(running, "FACTS", changed)
    study, cells, place = load(study_file)
    with pytest.raises(ConfigError, match="content of its head scores: reader-sparsemm"):
        place.prepare(study, cells)


def test_run_one_cell(study_file, tmp_path, monkeypatch):
    study, cells, place = load(study_file)
    place.prepare(study, cells)
    compressed = next(cell for cell in cells if cell.method == "snapkv")
    stop = threading.Event()
    ended = run_one(place, compressed, how(), stop, 60)
    assert ended["state"] == "done"
    assert "is not done" in ended["agreement"]
    assert ended == place.cell(compressed.id).status()
    assert run_one(place, compressed, how(), stop, 60) == ended
    # It waits for a reference that is being run.
    waiting = next(cell for cell in cells if cell.method == "sparsemm" and cell.tasks == ("one",))
    claim = claims.acquire(place.cell(waiting.reference).root)
    results = []
    thread = threading.Thread(target=lambda: results.append(run_one(place, waiting, how(), stop, 60)))
    thread.start()
    time.sleep(0.5)
    assert results == []
    reference = next(cell for cell in cells if cell.id == waiting.reference)
    cell_run.run(place, reference, claim, how(), stop)
    claim.release()
    thread.join(60)
    assert results[0]["agreement"] == "yes"
    # Or that may still begin, for as long as it is patient.
    other = next(cell for cell in cells if cell.method == "sparsemm" and cell.tasks != ("one",))
    began = time.monotonic()
    assert "is not done" in run_one(place, other, how(), stop, 60, patience=0.7)["agreement"]
    assert time.monotonic() - began >= 0.7
    busy = claims.acquire(place.cell(cells[-1].id).root)
    with pytest.raises(Exception, match=f"is being run by process {os.getpid()}"):
        run_one(place, cells[-1], how(), stop, 60)
    busy.release()
    behave(monkeypatch, fail={"sparsemm": 99})
    assert run_one(place, cells[-1], how(), stop, 60)["attempts"] == 2
    assert run_one(place, cells[-1], how(0), stop, 60)["attempts"] == 1


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
    original = folder_module.write_text_atomically

    def full(path, text):
        if "snapkv" in str(path) and path.name == "status.json" and '"state": "done"' in text:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if "snapkv" in str(path) and path.name == "status.json" and '"state": "failed"' in text:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, text)

    monkeypatch.setattr(folder_module, "write_text_atomically", full)
    outcome = runner(study_file).run()
    for identifier, state in outcome.states.items():
        assert state == ("failed" if "snapkv" in identifier else "done")
        assert ("the disk is full" in outcome.errors.get(identifier, "")) == ("snapkv" in identifier)
    assert {status["state"] for status in status_of(tmp_path / "out", "snapkv")} == {"running"}
    monkeypatch.undo()
    assert runner(study_file).run().complete


def test_tables_that_cannot_be_written_are_a_problem_and_not_a_crash(study_file):
    def full(root):
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
    outcome = runner(study_file, collect=lambda root: (root / "results.csv").write_text("x" * 9999)).run()
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

    def collect(root):
        inside.append(1)
        assert len(inside) == 1
        time.sleep(0.05)
        inside.pop()

    threads = [
        threading.Thread(target=lambda: problems.append(write_tables(place, collect))) for _ in range(4)
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
