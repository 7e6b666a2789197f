"""``sparsemm heads`` from the command line, on readers with random weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from sparsemm_eval.heads.commands import app
from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.pages.readers.families import build, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "some-reader"
    save(*build("tiny-reader"), path)
    return path


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_score_writes_a_table_without_paths(folder, tmp_path):
    out = tmp_path / "scores.json"
    command = (
        "score",
        "--model",
        folder,
        "--out",
        out,
        "--images",
        3,
        "--mode",
        "teacher",
        "--batch-size",
        2,
    )
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    assert "images 3" in result.output
    scores = HeadScores.load(out)
    facts = scores.provenance
    assert (facts["model"], facts["mode"], facts["images"]) == ("some-reader", "teacher", 3)
    assert facts["weights"].startswith("sha256:")
    assert str(tmp_path) not in out.read_text()
    assert str(folder.parent) not in out.read_text()
    assert not (tmp_path / "scores.json.journal").exists()
    again = tmp_path / "again.json"
    assert invoke(*(again if argument == out else argument for argument in command)).exit_code == 0
    assert again.read_text() == out.read_text()


def test_errors_are_one_line_and_exit_2(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    out = ("--out", tmp_path / "s.json")
    for arguments, message in (
        (("--model", "no-such/model-at-all", *out), "model='no-such/model-at-all'"),
        (("--model", folder, "--anchor", "books", *out), "anchor='books'"),
        (("--model", folder, "--mode", "guess", *out), "mode='guess'"),
        (("--model", folder, "--dtype", "int3", *out), "dtype='int3'"),
        (("--model", folder, "--images", "2", "--max-new-tokens", "3", *out), "no scores"),
    ):
        result = invoke("score", *arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert message in result.output


def test_two_processes_write_the_same_table_as_one(folder, tmp_path):
    tail = [
        "score",
        "--model",
        str(folder),
        "--images",
        "5",
        "--mode",
        "teacher",
        "--batch-size",
        "2",
        "--out",
    ]
    assert invoke(*tail, tmp_path / "one.json").exit_code == 0
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "sparsemm_eval.cli",
        "heads",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    two = [str(tmp_path / "two.json"), "--journal", str(tmp_path / "j")]
    subprocess.run([*launch, *tail, *two], check=True, env=environment, timeout=300)
    assert sorted(path.name for path in (tmp_path / "j").glob("*.jsonl")) == [
        "part-00000.jsonl",
        "part-00001.jsonl",
    ]
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one == two


def table(path, rows):
    HeadScores.from_array(rows, model="m").save(path)
    return path


def test_show_compare_and_import(tmp_path):
    a = table(tmp_path / "a.json", [[3.0, 0.0], [1.0, 0.0]])
    b = table(tmp_path / "b.json", [[0.0, 3.0], [1.0, 0.0]])
    shown = invoke("show", a, "--top", 1, "--plot", tmp_path / "map.svg")
    assert shown.exit_code == 0, shown.output
    assert "layer 0 head 0: 3" in shown.output
    assert "top 5% of heads (1): 75.0%" in shown.output
    assert (tmp_path / "map.svg").is_file()
    compared = invoke("compare", a, b, a, "--plot", tmp_path / "pair.png")
    assert compared.exit_code == 0, compared.output
    assert compared.output.count("Spearman") == 3
    assert "Spearman 1.0000, cosine 1.0000, overlap of the top 5 % 100.0%" in compared.output
    assert (tmp_path / "pair.png").is_file()
    official = tmp_path / "official.json"
    official.write_text('{"0-0": [1, 2], "0-1": [0, 0]}')
    imported = invoke("import", official, "--out", tmp_path / "own.json", "--model", "x")
    assert imported.exit_code == 0, imported.output
    assert HeadScores.load(tmp_path / "own.json").table.tolist() == [[1.5, 0.0]]


@pytest.mark.parametrize(
    "arguments", [("show", "nothing-of-this-name"), ("compare", "one"), ("import", "none.json", "--out", "o")]
)
def test_wrong_tables_are_named(arguments, monkeypatch):
    monkeypatch.setattr("sparsemm_eval.heads.scores.lookup._download", lambda url: pytest.fail(url))
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "sparsemm: " in result.output
    assert arguments[1] in result.output
