"""Online runs, against a local stand-in for W&B's server."""

import json

import pytest

from sparsemm_eval.study.tracking import Limits, TrackingSettings, open_tracker, run_id
from tests.study.stub_wandb_server import StubServer
from tests.study.test_tracking import guarded, poll_until_logged
from tests.study.tracked_cells import append_answers, make_cell, result_row, sample_rows, write_results

KEY = "marker0key" * 4
ONLINE = TrackingSettings("online", project="project", group="tiny")
LIMITS = Limits(open=60, results=60, close=60)


@pytest.fixture
def study(tmp_path):
    yield from guarded(tmp_path)


@pytest.fixture
def server(monkeypatch, tmp_path):
    with StubServer() as stub:
        monkeypatch.setenv("WANDB_BASE_URL", stub.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("HOME", str(tmp_path))
        yield stub


def test_a_failed_and_resumed_cell_is_one_run_online(study, server):
    cell, folder = make_cell(study)
    first = open_tracker(ONLINE, cell, folder, limits=LIMITS)
    append_answers(folder, [0, 1])
    poll_until_logged(first, 2)
    state = first.close(failed="the cell raised")
    assert (state.state, state.problem) == ("closed", None)
    [opened] = server.variables("UpsertBucket")[:1]
    assert opened["name"] == run_id(cell)
    assert (opened["groupName"], opened["jobType"], opened["displayName"]) == ("tiny", "cell", cell["id"])
    assert json.loads(opened["config"])["budget"]["value"] == 32
    assert (server.summary["state"], server.exit_code) == ("failed", 1)

    server.end_session()
    # Only the server knows how far the run has got: another machine, say, without the cell's folder.
    (folder / "tracking.json").unlink()
    append_answers(folder, [2])
    second = open_tracker(ONLINE, cell, folder, limits=LIMITS)
    poll_until_logged(second, 3)
    write_results(folder)
    state = second.finish([result_row(cell)], sample_rows(cell, 3))
    assert (state.state, state.problem) == ("finished", None)
    assert {variables["name"] for variables in server.variables("UpsertBucket")} == {run_id(cell)}
    assert [row["_step"] for row in server.history] == list(range(len(server.history)))
    samples = [row["progress/samples"] for row in server.history if "progress/samples" in row]
    assert samples == [2, 3]
    assert (server.summary["state"], server.exit_code) == ("done", 0)
    assert server.summary["effective_budget"] == result_row(cell)["effective_budget"]
    names = {variables["input"]["artifactCollectionName"] for variables in server.variables("CreateArtifact")}
    assert names == {cell["id"], f"run-{run_id(cell)}-samples_table"}
    assert len(server.variables("CommitArtifact")) == 2
    uploads = " ".join(server.uploads)
    assert uploads.count("/sample-0") == 3
    for name in ("head_budgets", "results.json", "run_record.json", "cell.json"):
        assert name in uploads

    key = KEY.encode()
    assert not [body for body in server.bodies if key in body]
    assert not [path for path in study.rglob("*") if path.is_file() and key in path.read_bytes()]
