"""``sparsemm heads`` from the command line, on readers with random weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from sparsemm_eval.cli import main
from sparsemm_eval.errors import SparseMMError
from sparsemm_eval.heads.anchors.registry import known_anchors
from sparsemm_eval.heads.commands import app
from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.pages.readers.reader import save
from sparsemm_eval.pages.readers.registry import build


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


def refused(*arguments):
    """What is wrong with a command."""
    result = invoke(*arguments)
    assert isinstance(result.exception, SparseMMError), (arguments, result.output)
    return str(result.exception)


def test_a_name_that_is_no_text_is_printed_all_the_same(tmp_path):
    scores = os.fsencode(table(tmp_path / "a.json", [[1.0, 0.0]]))
    line = [sys.executable, "-m", "sparsemm_eval.cli", "heads", "compare", scores, scores, "--plot"]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    plot = os.fsencode(tmp_path) + b"/\xff.png"
    done = subprocess.run([*line, plot], capture_output=True, text=True, env=strict)
    assert (done.returncode, done.stdout.count("\n")) == (0, 2), done.stderr
    assert done.stdout.endswith("\\udcff.png\n")
    assert os.path.exists(plot)


def test_an_error_is_one_line_and_exit_2(monkeypatch, capsys):
    line = ["sparsemm", "heads", "score", "--model", "tiny-reader", "--anchor", "books"]
    monkeypatch.setattr("sys.argv", line)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("sparsemm: anchor='books' is not valid")
    assert said.count("\n") == 1


def test_errors_name_the_option(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    out = ("--out", tmp_path / "s.json")
    for arguments, message in (
        (("--model", "no-such/model-at-all", *out), "model='no-such/model-at-all'"),
        (("--model", folder, "--anchor", "books", *out), "anchor='books'"),
        (("--model", folder, "--mode", "guess", *out), "mode='guess'"),
        (("--model", folder, "--dtype", "int3", *out), "dtype='int3'"),
        (("--model", folder, "--images", "2", "--max-new-tokens", "3", *out), "no scores"),
    ):
        assert message in refused("score", *arguments)


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
    assert arguments[1] in refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "a.json", "--plot", "a.txt"), "plot='a.txt' is not valid: expected a file name that ends"),
        (
            ("show", "a.json", "--plot", "a.json/x.png"),
            "a file that can be written (Not a directory)",
        ),
        (("compare", "a.json", "a.json", "--plot", "a.txt"), "plot='a.txt'"),
        (("figure", "none.png", "--model", "m", "--out", "a.txt"), "out='a.txt'"),
        (("import", "none.json", "--out", "."), "out='.' is not valid: expected a file that can be written"),
        (("score", "--model", "tiny-reader", "--out", "."), "out='.'"),
        (("score", "--model", "tiny-reader", "--out", "s.json", "--journal", "a.json"), "journal='a.json'"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sparsemm_eval.model.checkpoint.find", lambda *_, **__: pytest.fail("searched"))
    table("a.json", [[1.0, 0.0]])
    assert message in refused(*arguments)
    assert not CliRunner().invoke(app, list(arguments)).output
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_command_that_scored_nothing_is_not_in_the_way_of_the_next(folder, tmp_path):
    line = ("score", "--model", folder, "--out", tmp_path / "s.json", "--images", 1, "--mode", "teacher")
    assert "topk=9999" in refused(*line, "--topk", 9999)
    assert invoke(*line).exit_code == 0


def test_a_tilde_is_the_users_home(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    table(tmp_path / "a.json", [[3.0, 0.0], [1.0, 0.0]])
    (tmp_path / "model").symlink_to(folder)
    (tmp_path / "official.json").write_text('{"0-0": [1, 2]}')
    score = ("--images", 1, "--mode", "teacher", "--device", "cpu")
    for arguments in (
        ("show", "~/a.json", "--plot", "~/map.png"),
        ("compare", "~/a.json", "~/a.json", "--plot", "~/pair.png"),
        ("import", "~/official.json", "--out", "~/own.json"),
        ("score", "--model", "~/model", "--out", "~/s.json", "--journal", "~/journal", *score),
    ):
        outcome = invoke(*arguments)
        assert outcome.exit_code == 0, (arguments, outcome.exception)
    made = {"map.png", "pair.png", "own.json", "s.json", "journal"}
    assert made <= {path.name for path in tmp_path.iterdir()}


def test_scores_of_another_shape_are_refused_before_the_model_is_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("sparsemm_eval.model.checkpoint.load", lambda *_: pytest.fail("loaded"))
    Image.new("RGB", (8, 8)).save(tmp_path / "page.png")
    scores = table(tmp_path / "a.json", [[1.0, 0.0]])
    page, out = tmp_path / "page.png", tmp_path / "sheet.png"
    message = refused("figure", page, "--model", folder, "--scores", scores, "--out", out)
    assert "head scores are [1 layers, 2 query heads]" in message


def test_a_figure_of_something_else_than_an_image(folder, tmp_path):
    (tmp_path / "page.png").write_text("no image")
    message = refused("figure", tmp_path / "page.png", "--model", folder, "--out", tmp_path / "sheet.png")
    assert message.startswith("image=")


def test_the_help_lists_the_anchors_without_loading_torch():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from sparsemm_eval.heads.commands import app\n"
        "print(CliRunner().invoke(app, ['score', '--help']).output)\n"
        "assert 'torch' not in sys.modules\n"
    )
    wide = {**os.environ, "COLUMNS": "400", "TERMINAL_WIDTH": "400"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=wide)
    for name in known_anchors():
        assert name in done.stdout
