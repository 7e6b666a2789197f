"""What a runner tells W&B's tracker, whatever that makes of it."""

import json
import threading

import pandas as pd
import pytest

from sparsemm_eval.errors import ConfigError, EvaluationError
from sparsemm_eval.study import cell_run, claims, tracking
from sparsemm_eval.study.settings import Wandb
from sparsemm_eval.study.trackers import Tracking
from tests.study.running import how, load, runner, write_study


class Recorder:
    def __init__(self):
        self.events = []

    def open(self, settings, cell, folder, warn):
        self.events.append(("open", cell["id"], folder.name, settings.mode, settings.group))
        return self

    def poll(self):
        self.events.append(("poll",))

    def finish(self, rows, samples):
        self.events.append(("finish", [row["cell"] for row in rows], list(samples["cell"])))

    def close(self, failed=None):
        self.events.append(("close", failed))


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(tracking, "open_tracker", recorder.open)
    frame = pd.DataFrame({"cell": ["other"]})
    monkeypatch.setattr("sparsemm_eval.study.results.collect", lambda root: (frame, frame))
    return recorder


def tracked(messages=None, **changes):
    warn = print if messages is None else messages.append
    return how(tracking=Tracking(Wandb("offline", "p", "e"), "group", warn), **changes)


def one_cell(tmp_path):
    path = write_study(tmp_path / "study.yaml")
    return path, lambda cells: [cell for cell in cells if cell.method == "fullkv"][:1]


def test_a_done_cell_is_finished_with_its_own_rows(tmp_path, monkeypatch, recorder):
    path, first = one_cell(tmp_path)
    frame = pd.DataFrame({"cell": [load(path)[1][0].id, "other"]})
    monkeypatch.setattr("sparsemm_eval.study.results.collect", lambda root: (frame, frame))
    outcome = runner(path, cells=first, how_=tracked()).run()
    (identifier,) = outcome.states
    assert outcome.complete
    assert recorder.events[0] == ("open", identifier, identifier, "offline", "group")
    assert recorder.events[-1] == ("finish", [identifier], [identifier])


def test_a_failed_cell_is_closed_with_its_error_after_all_attempts(tmp_path, monkeypatch, recorder):
    monkeypatch.setenv("FAKE_CELL", json.dumps({"fail": {"fullkv": 99}}))
    path, first = one_cell(tmp_path)
    runner(path, cells=first, how_=tracked(retries=2)).run()
    assert [event[0] for event in recorder.events if event[0] != "poll"] == ["open", "close"]
    assert "told to fail" in recorder.events[-1][1]


def test_an_interrupted_cell_is_closed_without_an_error(tmp_path, monkeypatch, recorder):
    monkeypatch.setenv("FAKE_CELL", json.dumps({"hang": ["fullkv"]}))
    path, _ = one_cell(tmp_path)
    study, cells, place = load(path)
    place.prepare(study, cells)
    claim = claims.acquire(place.cell(cells[0].id).root)
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    with pytest.raises(cell_run.Interrupted):
        cell_run.run(place, cells[0], claim, tracked(), stop)
    assert recorder.events[-1] == ("close", None)


def test_results_that_cannot_be_collected_cost_the_cell_nothing(tmp_path, monkeypatch, recorder):
    def broken(root):
        raise EvaluationError("no")

    monkeypatch.setattr("sparsemm_eval.study.results.collect", broken)
    path, first = one_cell(tmp_path)
    messages = []
    assert runner(path, cells=first, how_=tracked(messages)).run().complete
    assert "were not logged: no" in messages[0]
    assert recorder.events[-1] == ("close", None)


def test_without_wandb_nothing_is_opened(tmp_path, monkeypatch, recorder):
    path, first = one_cell(tmp_path)
    assert runner(path, cells=first).run().complete
    assert recorder.events == []
    Tracking().check()


def test_online_runs_without_credentials_are_refused_before_anything_starts(monkeypatch):
    monkeypatch.setattr("sparsemm_eval.study.tracking_process.has_credentials", lambda: False)
    with pytest.raises(ConfigError, match="credentials"):
        Tracking(Wandb("online")).check()
    Tracking(Wandb("offline")).check()
