import json
import sys

import pytest
from typer import Typer
from typer.testing import CliRunner

from sparsemm_eval.errors import ConfigError, EvaluationError, UnsupportedError
from sparsemm_eval.study.dashboard import dashboard_command, read_plan, save_online, to_json
from sparsemm_eval.study.dashboard_workspace import ACCURACY_AGAINST, COLUMNS
from sparsemm_eval.study.tracking_figures import cell_config, summary
from tests.study.stub_wandb_server import StubServer
from tests.study.tracked_cells import make_cell, result_row

pytest.importorskip("wandb_workspaces", reason="needs the extra `dashboard`")


@pytest.fixture
def study(tmp_path):
    """The folder of a study of two tasks, one cell each."""
    cells = [make_cell(tmp_path, tasks=(task,))[0]["id"] for task in ("pages_qa", "pages_ocr")]
    settings = {"wandb": {"mode": "offline", "project": "project", "entity": None}}
    (tmp_path / "study.json").write_text(json.dumps({"name": "tiny", "settings": settings, "cells": cells}))
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
    app.command()(dashboard_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def sections(spec):
    return {section["name"]: section["panels"] for section in spec["section"]["panelBankConfig"]["sections"]}


def test_every_task_has_accuracy_against_every_cost(study):
    found = sections(to_json(read_plan(study))["spec"])
    for task in ("pages_qa", "pages_ocr"):
        axes = [
            (panel["config"]["xAxis"], panel["config"]["yAxis"])
            for panel in found[task]
            if panel["viewType"] == "Scatter Plot"
        ]
        expected = ("effective_budget", "kv_bytes", "prefill_seconds", "decode_seconds", "kv_bytes_peak")
        assert axes == [(f"summary:{task}/{name}", f"summary:{task}/score") for name in expected]
    agreement = [panel["config"]["yAxis"] for panel in found["agreement with FullKV"]]
    assert "summary:pages_ocr/agreement" in agreement
    kinds = [panel["viewType"] for panel in found["heads, samples, settings"]]
    assert "Media Browser" in kinds


def test_axes_are_figures_that_runs_have(study):
    cell, _ = make_cell(study, budget=99)
    logged = set(summary([result_row(cell)]))
    assert {f"pages_qa/{figure}" for _, figure, _ in ACCURACY_AGAINST} <= logged
    known = {f"config:{name}" for name in [*cell_config(cell), "ratio"]}
    known |= {f"summary:{name}" for name in logged}
    assert set(COLUMNS) <= known


def test_runs_are_of_this_study_grouped_by_method_and_budget(study):
    [runset] = to_json(read_plan(study))["spec"]["section"]["runSets"]
    assert [(key["section"], key["name"].removesuffix(".value")) for key in runset["grouping"]] == [
        ("config", "method"),
        ("config", "budget"),
    ]
    assert '"tiny"' in json.dumps(runset["filters"])
    assert "study" in json.dumps(runset["filters"])


def test_layout_puts_no_panel_on_another(study):
    for panels in sections(to_json(read_plan(study))["spec"]).values():
        places = [(panel["layout"]["x"], panel["layout"]["y"]) for panel in panels]
        assert len(set(places)) == len(places)


def test_tasks_are_those_of_the_results_where_there_are_some(study):
    assert read_plan(study).tasks == ("pages_qa", "pages_ocr")
    (study / "results.csv").write_text("cell,task,score\na,docvqa_val,0.5\nb,docvqa_val,\nb,ocrbench,1\n")
    assert read_plan(study).tasks == ("docvqa_val", "ocrbench")


def test_command_writes_json_for_a_study_that_is_not_online(study):
    done = run(study)
    assert done.exit_code == 0
    assert done.stdout.strip() == str(study / "dashboard.json")
    written = json.loads((study / "dashboard.json").read_text())
    assert (written["project"], written["displayName"]) == ("project", "tiny: KV-cache compression")
    assert list(sections(written["spec"]))[:2] == ["pages_qa", "pages_ocr"]


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
        save_online(read_plan(study, entity="team"))


def test_without_the_extra_its_name_is_said(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnsupportedError, match=r"pip install 'sparsemm-eval\[dashboard\]'"):
        to_json(read_plan(study))


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match=r"no study\.json"):
        read_plan(tmp_path)
