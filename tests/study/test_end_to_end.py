"""Real studies on the shipped reader: real processes, real lmms-eval."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sparsemm_eval.study.folder import StudyFolder
from tests.lmms_process import checkpoint, environment, is_shipped

TEXT = """\
name: real
output: {output}
models:
  - {{name: reader, family: llava, pretrained: {pretrained}}}
methods: [fullkv, snapkv, sparsemm]
budgets: [32]
tasks: pages_qa
knobs: {{window: 8}}
limit: 4
batch_size: 1
retries: 0
"""


def start(folder, study, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "sparsemm_eval", "study", "run", str(study), *arguments],
        cwd=folder,
        env={**os.environ, **environment(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(folder, study, *arguments):
    process = start(folder, study, *arguments)
    output = process.communicate(timeout=1500)[0]
    return process.returncode, output


def facts(root):
    """Of every done cell: scores, answers and measured entries; no times."""
    found = {}
    for identifier in StudyFolder(root).settings()["cells"]:
        cell = StudyFolder(root).cell(identifier)
        results = json.loads((cell.root / cell.status()["results"]).read_text())
        measured = results["sparsemm"]["measured"]
        answers = {}
        for path in cell.journal.glob("*/rank-*.jsonl"):
            for line in path.read_text().splitlines():
                record = json.loads(line)
                answers[record["sample"]] = (record["doc_id"], record["text"], record["tokens"])
        names = ("effective_budget", "kv_bytes_per_sample", "kept_mean")
        scores = {name: value for name, value in results["results"]["pages_qa"].items() if name != "alias"}
        found[identifier] = (scores, answers, {name: measured.get(name) for name in names})
    return found


def test_a_cell_that_cannot_load_leaves_the_others(tmp_path):
    study = tmp_path / "study.yaml"
    pretrained = checkpoint("tiny-reader", tmp_path)
    text = TEXT.format(output=tmp_path / "out", pretrained=pretrained).replace(
        "models:", f"models:\n  - {{name: broken, family: qwen2vl, pretrained: {pretrained}}}"
    )
    study.write_text(text.replace("[fullkv, snapkv, sparsemm]", "[snapkv]").replace("limit: 4", "limit: 2"))
    code, output = run(tmp_path, study)
    assert code == 1, output
    states = {}
    for identifier in StudyFolder(tmp_path / "out").settings()["cells"]:
        status = StudyFolder(tmp_path / "out").cell(identifier).status()
        states[identifier.partition("-")[0]] = status
    assert states["reader"]["state"] == "done", output
    assert states["reader"]["documents"] == 2
    assert states["broken"]["state"] == "failed"
    assert "Qwen2-VL checkpoint" in states["broken"]["error"]
    assert "Qwen2-VL checkpoint" in output
    assert (tmp_path / "out" / "results.csv").is_file()


@pytest.mark.slow
def test_killed_in_the_middle_and_resumed_a_study_has_the_same_results(tmp_path):
    if not is_shipped("tiny-reader"):
        pytest.skip("needs the shipped reader and its head scores")
    outputs = {}
    for name in ("calm", "killed"):
        outputs[name] = tmp_path / f"{name}.yaml"
        outputs[name].write_text(TEXT.format(output=tmp_path / name, pretrained="tiny-reader"))
    code, output = run(tmp_path, outputs["calm"])
    assert code == 0, output

    process = start(tmp_path, outputs["killed"])
    place = StudyFolder(tmp_path / "killed")
    deadline = time.monotonic() + 1500
    snapkv = None
    while snapkv is None or snapkv.answers() == 0:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
        if snapkv is None and place.record.is_file():
            snapkv = place.cell(next(name for name in place.settings()["cells"] if "snapkv" in name))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 60
    while snapkv.holder() is not None:
        assert time.monotonic() < deadline, "the cell outlived its runner"
        time.sleep(0.1)
    assert snapkv.status()["state"] == "running"

    code, output = run(tmp_path, outputs["killed"])
    assert code == 0, output
    calm, killed = facts(tmp_path / "calm"), facts(tmp_path / "killed")
    assert len(calm) == 3
    assert killed == calm
    assert all(len(answers) == 4 for _, answers, _ in killed.values())
    code, output = run(tmp_path, outputs["killed"])
    assert code == 0
    assert "start" not in output
