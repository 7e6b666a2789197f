import json
import sys

import pytest
from typer import Typer
from typer.testing import CliRunner

from sparsemm_eval.errors import ConfigError, UnsupportedError
from sparsemm_eval.study import results
from sparsemm_eval.tracking import flat
from sparsemm_eval.tracking.dashboard import (
    FIGURES,
    SCATTERED,
    command,
    save_online,
    to_json,
    workspace,
)
from tests.study.study_folder import Spec, write_study
from tests.tracking.stub_wandb_server import StubServer

pytest.importorskip("wandb_workspaces", reason="needs the extra `dashboard`")


@pytest.fixture
def study(tmp_path):
    """The folder of a study of two tasks, one cell each."""
    knobs = {"window": 8, "kernel_size": 5}
    write_study(tmp_path, [Spec("snapkv", 32, None, knobs, (task,)) for task in ("pages_qa", "pages_ocr")], 3)
    record = json.loads((tmp_path / "study.json").read_text()) | {"name": "tiny"}
    record["settings"] |= {
        "wandb": {"mode": "offline", "project": "project", "entity": None},
        "knobs": {"window": [8], "kernel_size": [5, 7]},
    }
    (tmp_path / "study.json").write_text(json.dumps(record))
    return tmp_path


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """A user without W&B credentials."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    app = Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def sections(spec):
    return {section["name"]: section["panels"] for section in spec["section"]["panelBankConfig"]["sections"]}


def test_every_task_has_accuracy_against_every_cost(study):
    found = sections(to_json(workspace(study))["spec"])
    for task in ("pages_qa", "pages_ocr"):
        axes = [
            (panel["config"]["xAxis"], panel["config"]["yAxis"])
            for panel in found[task]
            if panel["viewType"] == "Scatter Plot"
        ]
        expected = [
            *((name, "score") for name in ("effective_budget", "kv_bytes_per_sample")),
            *((name, "score") for name in ("prefill_seconds_per_sample", "decode_seconds_per_token")),
            *(("kv_bytes_peak_per_call", "score"), ("effective_budget", "agreement")),
        ]
        assert axes == [(f"summary:{task}/{x}", f"summary:{task}/{y}") for x, y in expected]
    kinds = [panel["viewType"] for panel in found["heads, samples, settings"]]
    assert "Media Browser" in kinds


def test_figures_are_those_that_runs_have(study):
    cells, _ = results.collect(study)
    row = cells[cells["task"] == "pages_qa"].to_dict("records")[0] | {"agreement": 0.5}
    logged = set(flat.summary([row]))
    assert {f"pages_qa/{figure}" for _, *axes, _ in SCATTERED for figure in axes} <= logged
    assert set(FIGURES) <= logged


def test_runs_are_of_this_study_and_only_seeds_are_averaged(study):
    [runset] = to_json(workspace(study))["spec"]["section"]["runSets"]
    keys = [(key["section"], key["name"].removesuffix(".value")) for key in runset["grouping"]]
    assert keys == [("config", name) for name in ("model", "method", "kernel_size", "budget")]
    assert '"tiny"' in json.dumps(runset["filters"])
    assert "study" in json.dumps(runset["filters"])


def test_layout_puts_no_panel_on_another(study):
    for panels in sections(to_json(workspace(study))["spec"]).values():
        places = [(panel["layout"]["x"], panel["layout"]["y"]) for panel in panels]
        assert len(set(places)) == len(places)


def test_command_writes_json_for_a_study_that_is_not_online(study):
    done = run(study)
    assert done.exit_code == 0
    assert done.stdout.strip() == str(study / "dashboard.json")
    written = json.loads((study / "dashboard.json").read_text())
    assert (written["project"], written["displayName"]) == ("project", "tiny: KV-cache compression")
    assert list(sections(written["spec"]))[1:3] == ["pages_qa", "pages_ocr"]


def test_command_takes_another_place_and_name(study):
    out = study / "sub" / "board.json"
    assert run(study, "--entity", "team", "--project", "other", "--no-save", "--out", out).exit_code == 0
    written = json.loads(out.read_text())
    assert (written["entity"], written["project"]) == ("team", "other")
    assert not (study / "dashboard.json").exists()


def test_saving_without_a_key_is_refused(study, nobody):
    done = run(study, "--save")
    assert isinstance(done.exception, ConfigError)
    assert "wandb login" in str(done.exception)


def without_ids(value):
    if isinstance(value, dict):
        return {key: without_ids(item) for key, item in value.items() if key not in ("__id__", "id")}
    return [without_ids(item) for item in value] if isinstance(value, list) else value


def test_saving_sends_what_the_json_says(study, nobody, monkeypatch):
    with StubServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        done = run(study, "--save", "--out", study / "board.json")
    assert done.exit_code == 0, done.exception
    written = json.loads((study / "board.json").read_text())
    [sent] = server.variables("UpsertView2")
    assert sent["entityName"] == "me"
    assert (sent["projectName"], sent["displayName"]) == (written["project"], written["displayName"])
    assert without_ids(json.loads(sent["spec"])) == without_ids(written["spec"])
    assert "/me/project" in done.stdout


def test_saving_without_network_says_what_can_be_done(study, nobody, monkeypatch):
    import wandb_workspaces.workspaces as ws

    def no_network(workspace):
        raise ConnectionError("no network for " + "0" * 40)

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(ws.Workspace, "save", no_network)
    with pytest.raises(UnsupportedError, match=r"no network for \[WANDB_API_KEY\].*--no-save"):
        save_online(workspace(study, entity="team"))


def test_without_the_extra_its_name_is_said(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnsupportedError, match=r"pip install 'sparsemm-eval\[dashboard\]'"):
        workspace(study)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="study folder"):
        workspace(tmp_path)
