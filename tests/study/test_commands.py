"""`sparsemm study …` as a user calls it, with stand-in cells."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sparsemm_eval.cli import app
from sparsemm_eval.errors import ConfigError, EvaluationError
from sparsemm_eval.model.shipped import NAMES
from sparsemm_eval.study import cell_run
from sparsemm_eval.study.folder import StudyFolder
from tests.study.running import how

ROOT = Path(__file__).parents[2]
TEXT = """\
name: tiny
output: {output}
models: [{{name: reader, family: llava, pretrained: tiny-reader}}]
methods: [fullkv, snapkv]
budgets: [16, 32]
tasks: pages_qa
knobs: {{window: 8}}
limit: 3
wandb: {{mode: disabled, project: p, entity: e}}
"""


@pytest.fixture
def study_file(tmp_path, monkeypatch):
    path = tmp_path / "study.yaml"
    path.write_text(TEXT.format(output=tmp_path / "out"))
    monkeypatch.setattr(cell_run, "How", lambda retries, nproc, wandb: how(retries, nproc=nproc))
    monkeypatch.setattr("sparsemm_eval.study.results.write", lambda folder, samples: None)
    return path


def call(*arguments):
    return CliRunner().invoke(app, ["study", *map(str, arguments)])


def test_a_dry_run_shows_everything_and_writes_nothing(study_file, tmp_path):
    outcome = call("run", study_file, "--dry-run")
    assert outcome.exit_code == 0, outcome.output
    lines = [line for line in outcome.output.splitlines() if line.startswith("$ sparsemm eval --nproc 1 ")]
    assert len(lines) == 3
    assert "--model llava_fullkv" in lines[0]
    assert "time: unknown (no done cell is like those that are left)" in outcome.output
    assert not (tmp_path / "out").exists()


def test_a_dry_run_for_scripts_and_its_estimate_from_done_cells(study_file, tmp_path):
    record = json.loads(call("run", study_file, "--dry-run", "--json").stdout)
    assert [cell["state"] for cell in record["cells"]] == ["pending"] * 3
    assert record["seconds"] is None
    assert shlex.split(record["cells"][0]["command"])[:4] == ["sparsemm", "eval", "--nproc", "1"]
    assert call("run", study_file, "--only", "*fullkv*").exit_code == 0
    place = StudyFolder(tmp_path / "out")
    done = place.cell(place.settings()["cells"][0])
    done.write_status({**done.status(), "seconds": 100.0})
    record = json.loads(call("run", study_file, "--dry-run", "--json").stdout)
    assert record["seconds"] == 200.0
    record = json.loads(call("run", study_file, "--dry-run", "--json", "--workers", "2").stdout)
    assert record["seconds"] == 100.0


@pytest.mark.parametrize("name", ["tiny", "benchmarks"])
def test_the_shipped_studies_are_valid(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = call("run", ROOT / "studies" / f"{name}.yaml", "--dry-run", "--json")
    assert outcome.exit_code == 0, outcome.output
    commands = [cell["command"] for cell in json.loads(outcome.stdout)["cells"]]
    assert all(any(f"pretrained={reader}," in command for command in commands) for reader in NAMES)
    assert len(set(commands)) == len(commands)


def test_run_and_status(study_file, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_CELL", json.dumps({"fail": {"snapkv": 99}}))
    outcome = call("run", study_file)
    assert outcome.exit_code == 1
    assert "start   reader-fullkv-pages_qa" in outcome.output
    assert "this cell was told to fail" in outcome.output
    assert "1 of 3 cells are done" in outcome.output
    assert "--retry-failed" in outcome.output
    shown = call("status", tmp_path / "out")
    assert shown.exit_code == 0
    assert "1 done, 2 failed" in shown.output
    record = json.loads(call("status", tmp_path / "out", "--json").stdout)
    assert record["counts"] == {
        **{"done": 1, "running": 0, "interrupted": 0, "stale": 0, "failed": 2, "pending": 0}
    }
    assert record["cells"][0]["scores"]["pages_qa"] > 0
    assert record["cells"][1]["error"].endswith("told to fail")
    monkeypatch.delenv("FAKE_CELL")
    outcome = call("run", study_file, "--retry-failed", "--json")
    assert outcome.exit_code == 0
    assert set(json.loads(outcome.stdout)["states"].values()) == {"done"}
    assert "start   reader-snapkv" in outcome.stderr
    assert call("run", study_file).exit_code == 0


def test_states_of_cells_at_work_and_left_alone(study_file, tmp_path):
    call("run", study_file)
    place = StudyFolder(tmp_path / "out")
    one, two, _ = (place.cell(identifier) for identifier in place.settings()["cells"])
    for cell in (one, two):
        cell.write_status({**cell.status(), "state": "running"})
    with one.owned():
        record = json.loads(call("status", tmp_path / "out", "--json").stdout)
    assert [cell["state"] for cell in record["cells"]] == ["running", "interrupted", "done"]
    assert [cell["answers"] for cell in record["cells"]] == [3, 3, 0]


def test_a_group_of_tasks_has_an_unknown_number_of_documents(study_file, tmp_path):
    for tasks, number in (("pages_qa", 3), ("[[pages_qa, pages_ocr]]", 6), ("sparsemm_suite", None)):
        study_file.write_text(
            TEXT.format(output=tmp_path / "out").replace("tasks: pages_qa", f"tasks: {tasks}")
        )
        call("slurm", study_file, "--out", tmp_path / "a.sbatch")
        record = json.loads(call("status", tmp_path / "out", "--json").stdout)
        assert {cell["documents"] for cell in record["cells"]} == {number}


def test_mistakes_end_with_code_two_before_anything_starts(study_file, tmp_path):
    study_file.write_text(study_file.read_text().replace("[16, 32]", "[16, 8]").replace("limit", "limmit"))
    outcome = call("run", study_file)
    assert outcome.exception.exit_code == 2
    assert f"{study_file}:5: budgets[1]: 8 is not valid" in str(outcome.exception)
    assert f"{study_file}:8: limmit: 3 is not valid" in str(outcome.exception)
    assert "2 problems" in str(outcome.exception)
    assert not (tmp_path / "out").exists()
    assert call("sweep", study_file).exception.exit_code == 2
    assert call("slurm", study_file).exception.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--only", "nothing"], "--only"),
        (["--gpus", "0,0"], "--gpus"),
        (["--gpus", "0,1,2", "--nproc", "2"], "--gpus"),
        (["--gpus", "0", "--workers", "2"], "--workers"),
    ],
)
def test_options_that_cannot_work(study_file, arguments, named):
    outcome = call("run", study_file, *arguments)
    assert isinstance(outcome.exception, ConfigError)
    assert named in str(outcome.exception)


def test_another_study_is_refused_in_a_dry_run_too(study_file, tmp_path):
    assert call("run", study_file).exit_code == 0
    study_file.write_text(study_file.read_text().replace("name: tiny", "name: other", 1))
    for more in ([], ["--dry-run"]):
        outcome = call("run", study_file, *more)
        assert isinstance(outcome.exception, ConfigError)
        assert "this one holds 'tiny'" in str(outcome.exception)
    assert StudyFolder(tmp_path / "out").settings()["name"] == "tiny"


def test_a_study_that_has_grown(study_file, tmp_path):
    assert call("run", study_file).exit_code == 0
    study_file.write_text(study_file.read_text().replace("[16, 32]", "[16, 64]"))
    outcome = call("run", study_file)
    assert outcome.exit_code == 0
    assert [line.split()[1] for line in outcome.output.splitlines() if line.startswith("start")] == [
        name for name in StudyFolder(tmp_path / "out").settings()["cells"] if "-b64-" in name
    ]
    shown = call("status", tmp_path / "out").output
    assert "3 done" in shown
    assert "1 more cells lie in" in shown


def test_one_cell_by_index_and_by_id(study_file, tmp_path, monkeypatch):
    assert call("slurm", study_file, "--out", tmp_path / "a.sbatch").exit_code == 0
    out = tmp_path / "out"
    identifiers = StudyFolder(out).settings()["cells"]
    assert call("cell", out, "0").exit_code == 0
    outcome = call("cell", out, f"--cell={identifiers[1]}", "--json")
    assert outcome.exit_code == 0
    [record] = json.loads(outcome.stdout)
    assert (record["cell"], record["state"]) == (identifiers[1], "done")
    monkeypatch.setenv("FAKE_CELL", json.dumps({"fail": {"snapkv": 99}}))
    assert call("cell", out, "2").exit_code == 1
    for wrong in (["3"], ["-1"], ["nothing"], []):
        outcome = call("cell", out, *wrong)
        assert outcome.exit_code == 2 or isinstance(outcome.exception, ConfigError)
    with StudyFolder(out).cell(identifiers[2]).owned():
        outcome = call("cell", out, "2")
        assert isinstance(outcome.exception, EvaluationError)
        assert f"is being run by process {os.getpid()}" in str(outcome.exception)
    monkeypatch.delenv("FAKE_CELL")
    assert call("cell", out, "1", "--count", "5").exit_code == 0
    assert StudyFolder(out).cell(identifiers[2]).status()["state"] == "done"
    assert isinstance(call("cell", tmp_path / "nowhere", "0").exception, ConfigError)
    assert isinstance(call("status", tmp_path / "nowhere").exception, ConfigError)


def test_a_sweep_gives_agents_every_cell(study_file, tmp_path):
    from wandb.sdk.launch.sweeps import utils

    out = tmp_path / "sweep.yaml"
    outcome = call("sweep", study_file, "--out", out)
    assert outcome.exit_code == 0, outcome.output
    assert "runs stay empty" in outcome.stderr
    assert "wandb agent ENTITY/PROJECT/SWEEP" in out.read_text()
    sweep = yaml.safe_load(out.read_text())
    assert (sweep["project"], sweep["entity"], sweep["method"]) == ("p", "e", "grid")
    place = StudyFolder(tmp_path / "out")
    values = sweep["parameters"]["cell"]["values"]
    assert values == place.settings()["cells"]
    # What an agent makes of it.
    arguments = utils.create_sweep_command_args({"args": {"cell": {"value": values[1]}}})
    line = [
        part
        for word in sweep["command"]
        for part in ({"${env}": ["/usr/bin/env"], "${args}": arguments["args"]}.get(word, [word]))
    ]
    assert line[:5] == ["/usr/bin/env", sys.executable, "-m", "sparsemm_eval", "study"]
    assert call(*line[5:]).exit_code == 0
    assert place.cell(values[1]).status()["state"] == "done"
    study_file.write_text(study_file.read_text().replace("mode: disabled", "mode: online"))
    assert call("sweep", study_file, "--out", out).stderr == ""


def test_a_slurm_array_has_one_task_for_every_cell(study_file, tmp_path, monkeypatch):
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\necho "$@"\n')
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    out = tmp_path / "study.sbatch"
    outcome = call(
        *("slurm", study_file, "--out", out, "--partition", "gpu", "--time", "1:00:00"),
        *("--gpus-per-task", "1", "--memory", "32G", "--parallel", "2", "--gres", "gpu:1", "--qos", "long"),
        *("--constraint", "a100", "--sbatch=--reservation=us", "--sbatch", "--nice"),
    )
    assert outcome.exit_code == 0, outcome.output
    text = out.read_text()
    wanted = ["--array=0-2%2", "--partition=gpu", "--time=1:00:00", "--gpus-per-task=1", "--mem=32G"]
    wanted += ["--gres=gpu:1", "--qos=long", "--constraint=a100", "--reservation=us", "--nice", "--requeue"]
    assert all(f"#SBATCH {option}\n" in text for option in wanted)
    assert "--account" not in text
    assert (tmp_path / "out" / "slurm").is_dir()
    assert array_task(out, "1") == ["-m", "sparsemm_eval", "study", "cell", str(tmp_path / "out"), "1"]


def array_task(file, number):
    """What a task of an array would run."""
    surroundings = {**os.environ, "SLURM_ARRAY_TASK_ID": number}
    ran = subprocess.run(["bash", str(file)], env=surroundings, capture_output=True, text=True, check=True)
    return ran.stdout.split()


def test_several_cells_share_an_array_task(study_file, tmp_path, monkeypatch):
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\necho "$@"\n')
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    out = tmp_path / "study.sbatch"
    assert call("slurm", study_file, "--out", out, "--cells-per-task", "2", "--max-array", "2").exit_code == 0
    assert "#SBATCH --array=0-1\n" in out.read_text()
    assert array_task(out, "1")[-2:] == ["--count=2", "2"]
    outcome = call("slurm", study_file, "--out", out, "--max-array", "2")
    assert "at least 2: 3 cells in an array of at most 2 tasks" in str(outcome.exception)
    assert "--sbatch" in str(call("slurm", study_file, "--sbatch", "reservation").exception)
    assert "--qos" in str(call("slurm", study_file, "--qos", "a\n#SBATCH --reservation=x").exception)


def test_help_has_examples():
    for name in ("run", "status", "cell", "sweep", "slurm", "show", "figures"):
        outcome = CliRunner().invoke(app, ["study", name, "--help"], env={"COLUMNS": "200"})
        assert outcome.exit_code == 0
        assert f"sparsemm study {name}" in outcome.output


def test_the_live_table_shows_what_matters_now(study_file, tmp_path):
    from rich.console import Console

    from sparsemm_eval.study import checks, display

    call("run", study_file)
    _, cells = checks.load(study_file)
    place = StudyFolder(tmp_path / "out")
    with (tmp_path / "screen").open("w") as file:
        console = Console(file=file, force_terminal=True, width=120, height=30)
        with display.Watcher(place, cells, 1, console) as shown:
            shown.started(cells[0])
            shown.ended(cells[0], place.cell(cells[0].id).status())
    screen = (tmp_path / "screen").read_text()
    assert f"start   {cells[0].id}" in screen
    assert "3 done   left: 0 s" in screen
    assert screen.index("3 done   left: 0 s") < screen.index("state")
    assert "pages_qa" in screen


def test_shipped_studies_are_listed_and_run_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = call("list").output
    names = [line.split()[0] for line in listed.splitlines() if line.strip()][:-1]
    paper = [f"paper/{name}" for name in ("ablation", "head_scores", "main", "masking", "rho")]
    smol = ("evidence", "kernels", "long", "methods", "reading", "text_heads")
    shipped = ["benchmarks", "evidence", "fovea-dev", "methods-dev", "methods", *paper]
    assert names == [*shipped, *(f"smol/{name}" for name in smol), "tiny"]
    assert call("run", "paper/ablation", "--dry-run").exit_code == 0
    outcome = call("run", "tiny", "--dry-run")
    assert outcome.exit_code == 0, outcome.output
    assert "143 cells: 143 pending; folder" in outcome.output
    (tmp_path / "tiny").write_text("name: [")  # a file of the user's goes first
    assert call("run", "tiny", "--dry-run").exception.exit_code == 2
    assert call("run", "huge", "--dry-run").exception.exit_code == 2
