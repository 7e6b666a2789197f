"""Online runs, against a local stand-in for W&B's server."""

import json

import pytest

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.study.wandb_runs import check, log
from tests.tracking.stub_wandb_server import StubServer
from tests.tracking.test_runs import SPARSE, prepare

KEY = "marker0key" * 4


def test_a_cell_is_uploaded_and_goes_on_with_its_run(tmp_path, monkeypatch):
    study = prepare(tmp_path / "tiny", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with StubServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        check("online")
        assert log("online", study, SPARSE.id) == "logged"
        [opened] = server.variables("UpsertBucket")[:1]
        cell = json.loads((study / "cells" / SPARSE.id / "cell.json").read_text())
        assert (opened["name"], opened["displayName"]) == (cell["hash"][:16], SPARSE.id)
        assert (server.summary["state"], server.exit_code) == ("done", 0)
        rows = len(server.history)
        server.end_session()
        assert log("online", study, SPARSE.id) == "logged"
        assert {call["name"] for call in server.variables("UpsertBucket")} == {opened["name"]}
        steps = [row["_step"] for row in server.history]
        assert steps == list(range(2 * rows))
        uploads = " ".join(server.uploads)
        assert all(name in uploads for name in ("results.json", "cell.json"))
        assert not [body for body in server.bodies if KEY.encode() in body]
    assert not [path for path in study.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_online_without_credentials_is_refused_first(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    with pytest.raises(ConfigError, match="wandb login"):
        check("online")
    check("offline")
