"""Claims: one worker per cell, whoever dies in between."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from sparsemm_eval.study import claims, processes
from sparsemm_eval.study.folder import read_json


def script(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def until(condition, patience=60):
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


HOLD = """
    import sys, time, pathlib
    from sparsemm_eval.study import claims
    claim = claims.acquire(pathlib.Path(sys.argv[1]))
    print("none" if claim is None else claim.token, flush=True)
    time.sleep(600)
"""


def test_a_claim_excludes_others_until_it_is_released(tmp_path):
    claim = claims.acquire(tmp_path)
    assert claims.acquire(tmp_path) is None
    assert claims.holder(tmp_path)["pid"] == os.getpid()
    assert claim.beat()
    claim.note(child=17)
    assert read_json(tmp_path / "claim.json")["child"] == 17
    claim.release()
    assert claims.holder(tmp_path) is None
    assert claims.acquire(tmp_path).token != claim.token


def test_a_living_process_keeps_its_claim_and_a_killed_one_loses_it_at_once(tmp_path):
    owner = script(HOLD, tmp_path)
    try:
        token = owner.stdout.readline().strip()
        assert token != "none"
        assert claims.acquire(tmp_path) is None
    finally:
        owner.kill()
        owner.wait()
    taken = claims.acquire(tmp_path)
    assert taken is not None
    assert taken.token != token


def test_a_pid_that_was_given_to_another_process_does_not_hold_a_claim(tmp_path):
    claims.acquire(tmp_path)
    record = read_json(tmp_path / "claim.json")
    (tmp_path / "claim.json").write_text(json.dumps({**record, "started": "1"}))
    assert claims.acquire(tmp_path) is not None


def test_another_machines_claim_lives_by_its_heartbeat(tmp_path):
    other = claims.acquire(tmp_path)
    record = read_json(tmp_path / "claim.json")
    (tmp_path / "claim.json").write_text(json.dumps({**record, "machine": "elsewhere", "pid": 1}))
    assert claims.acquire(tmp_path, expiry=1000) is None
    past = time.time() - 2000
    os.utime(tmp_path / "claim.json", (past, past))
    assert claims.holder(tmp_path, expiry=3000) is not None
    assert other.beat()
    assert claims.acquire(tmp_path, expiry=1000) is None
    os.utime(tmp_path / "claim.json", (past, past))
    assert claims.holder(tmp_path, expiry=1000) is None
    taken = claims.acquire(tmp_path, expiry=1000)
    assert taken is not None
    # The one that seemed dead learns of it, and cannot disturb the new owner.
    assert not other.beat()
    other.note(child=5)
    other.release()
    assert read_json(tmp_path / "claim.json")["token"] == taken.token
    assert "child" not in read_json(tmp_path / "claim.json")


def test_of_many_processes_one_gets_the_cell(tmp_path):
    racers = [script(HOLD, tmp_path / "cell") for _ in range(6)]
    try:
        answers = [racer.stdout.readline().strip() for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
    assert len(answers) == 6
    assert sum(answer != "none" for answer in answers) == 1


COUNT = """
    import os, sys, pathlib, time
    from sparsemm_eval.study import claims
    folder = pathlib.Path(sys.argv[1])
    done = 0
    while done < int(sys.argv[2]):
        claim = claims.acquire(folder)
        if claim is None:
            continue
        # Only safe if nobody else is here.
        number = int((folder / "number").read_text())
        time.sleep(0.001)
        (folder / "number").write_text(str(number + 1))
        done += 1
        claim.release()
"""


def test_work_under_a_claim_is_never_done_by_two(tmp_path):
    (tmp_path / "number").write_text("0")
    racers = [script(COUNT, tmp_path, 10) for _ in range(3)]
    assert [racer.wait(120) for racer in racers] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "30"


ORPHAN = """
    import os, sys, time, pathlib, subprocess
    from sparsemm_eval.study import claims, processes
    claim = claims.acquire(pathlib.Path(sys.argv[1]))
    # Without the tie to this process: as if the kernel had no such thing.
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    child = subprocess.Popen(
        [sys.executable, "-c", deaf],
        env={**os.environ, processes.MARK: claim.token},
        start_new_session=True,
    )
    time.sleep(600)
"""


def test_what_a_dead_owner_left_running_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(processes.end_marked, "__defaults__", (1.0,))
    owner = script(ORPHAN, tmp_path)
    assert owner.stdout.readline().strip() == "up"
    token = read_json(tmp_path / "claim.json")["token"]
    orphans = processes.marked(token)
    assert len(orphans) == 1
    owner.kill()
    owner.wait()
    assert processes.marked(token) == orphans
    assert claims.acquire(tmp_path) is not None
    assert processes.marked(token) == []


PARENT = """
    import os, sys, time
    from sparsemm_eval.study import processes
    with open(sys.argv[1], "wb") as log:
        line = [sys.executable, "-c", "import time; print('up'); time.sleep(600)"]
        child = processes.start(line, os.environ, "m1", log)
        time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's end is Linux's")
def test_a_cells_process_ends_with_its_runner_even_when_that_is_killed(tmp_path):
    log = tmp_path / "log"
    parent = script(PARENT, log)
    until(lambda: log.exists() and "up" in log.read_text())
    assert len(processes.marked("m1")) == 1
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    until(lambda: processes.marked("m1") == [])


def test_a_process_is_known_by_pid_and_start():
    me = os.getpid()
    assert processes.is_running(me, processes.started(me))
    assert not processes.is_running(me, "1")
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    since = processes.started(child.pid)
    until(lambda: not processes.is_running(child.pid, since))  # ended, and not yet waited for
    child.wait()
    assert not processes.is_running(child.pid, since)
