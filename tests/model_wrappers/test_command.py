"""The real lmms-eval command: one process and two, failures, kills."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsemm_eval.model_wrappers.records.run_record import read_runs
from sparsemm_eval.pages.drawing.render import make_page
from tests.lmms_process import SECRETS, files_with_secrets
from tests.model_wrappers.task_folder import write_task

COUNT = 13
TWO_PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Folder and name of a task with an odd number of documents."""
    folder = tmp_path_factory.mktemp("task")
    sizes = ((8, 16), (16, 16), (8, 24))
    documents = [
        {"image": make_page("heldout", 1, i, size=sizes[i % 3]).image, "question": f"{i} value of AB?"}
        for i in range(COUNT)
    ]
    return folder, write_task(folder, documents, ["x"] * COUNT, tokens=40)


@pytest.fixture
def command(task, checkpoints):
    """Command line and environment of a run."""

    def make(output, launcher=(), environment=None, **model_args):
        folder, name = task
        given = {
            "pretrained": checkpoints["tiny-reader"],
            "budget": 40,
            "window": 8,
            "batch_size": 2,
            "journal": output / "journal",
            "stats_dir": output / "stats",
            **model_args,
        }
        line = [
            *(sys.executable, *launcher, "-m", "lmms_eval", "--model", "llava_snapkv", "--model_args"),
            ",".join(f"{key}={value}" for key, value in given.items()),
            *("--tasks", name, "--include_path", str(folder), "--device", "cpu"),
            *("--output_path", str(output), "--log_samples"),
        ]
        variables = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **(environment or {})}
        return {"args": line, "env": {**os.environ, **variables}, "cwd": folder}

    return make


def run(given):
    return subprocess.run(**given, capture_output=True, text=True, timeout=400, check=False)


def results_of(output):
    return sorted(output.rglob("*_results.json"), key=lambda path: path.stat().st_mtime_ns)


def samples_of(output):
    """Samples of the last results, without what names the run."""
    path = sorted(output.rglob("*_samples_*.jsonl"), key=lambda path: path.stat().st_mtime_ns)[-1]
    return sorted(path.read_text().splitlines(), key=lambda line: json.loads(line)["doc_id"])


def scores_of(output):
    return json.loads(results_of(output)[-1].read_text())["results"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Where the run of one process wrote; filled on first use."""
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def one_process(whole, command):
    """Output folder of an undisturbed run of one process."""
    if not (whole / "stats").exists():
        finished = run(command(whole, environment=SECRETS))
        assert finished.returncode == 0, finished.stdout + finished.stderr
        (whole / "output.txt").write_text(finished.stdout + finished.stderr)
    return whole


def test_the_command_writes_results_and_measurements(one_process):
    (results,) = results_of(one_process)
    assert json.loads(results.read_text())["throughput"]["avg_effective_budget"] == 40
    (record,) = read_runs(one_process / "stats")
    assert record["measured"]["samples"] == COUNT
    assert len(samples_of(one_process)) == COUNT


def test_no_secret_is_written_down(one_process):
    assert "Evaluation tracker args" in (one_process / "output.txt").read_text()
    assert files_with_secrets(one_process, "") == []


@pytest.mark.slow
def test_two_processes_give_the_same_samples_and_scores(one_process, command, tmp_path):
    finished = run(command(tmp_path, TWO_PROCESSES))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert samples_of(tmp_path) == samples_of(one_process)
    assert scores_of(tmp_path) == scores_of(one_process)
    (record,) = read_runs(tmp_path / "stats")
    assert record["processes"] == 2
    assert record["measured"]["samples"] == COUNT
    assert len(list((tmp_path / "journal").rglob("rank-*.jsonl"))) == 2
    stem = record["path"].removesuffix("_run.json")
    for rank in (0, 1):
        assert Path(f"{stem}_samples.rank{rank}.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("broken", [0, 1])
def test_one_failing_rank_ends_all_with_its_error(command, tmp_path, broken):
    given = command(tmp_path, TWO_PROCESSES, {"BROKEN_QUESTION": f"{broken + 2} value of AB?"})
    started = time.monotonic()
    finished = run(given)
    assert finished.returncode != 0
    assert time.monotonic() - started < 120  # two starts and a minute
    assert f"rank {broken} of 2 failed and ends the run" in finished.stdout + finished.stderr
    assert (
        f"local_pages/{broken + 2}: its images or prompt could not be read"
        in finished.stdout + finished.stderr
    )
    assert not results_of(tmp_path)


@pytest.mark.slow
def test_a_failing_run_leaves_no_results(command, tmp_path):
    finished = run(command(tmp_path, environment={"BROKEN_QUESTION": "3 value of AB?"}))
    assert "local_pages/3: its images or prompt could not be read" in finished.stdout + finished.stderr
    assert not results_of(tmp_path)


@pytest.mark.slow
def test_a_killed_run_finishes_the_rest_only(one_process, command, tmp_path):
    draw = random.Random(time.time_ns())
    journal = tmp_path / "journal" / "local_pages" / "rank-00000.jsonl"
    reached = 0
    for _ in range(2):
        process = subprocess.Popen(**command(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        goal = draw.randint(reached + 1, min(reached + 5, COUNT - 1))
        while process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") >= goal:
                time.sleep(draw.random() * 0.3)
                process.kill()
            time.sleep(0.01)
        process.wait()
        reached = journal.read_bytes().count(b"\n")
        assert not results_of(tmp_path)
    finished = run(command(tmp_path))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert samples_of(tmp_path) == samples_of(one_process)
    assert scores_of(tmp_path) == scores_of(one_process)
    record = read_runs(tmp_path / "stats")[-1]
    assert record["measured"]["samples"] == COUNT
    assert record["measured"]["samples_restored"] >= reached - 1
