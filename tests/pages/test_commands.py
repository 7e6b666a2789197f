import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from sparsemm_eval.cli import app, main
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.pages.benchmarks.write import TASKS
from sparsemm_eval.pages.training import train as training


@pytest.mark.parametrize("option", ["--reader", "--family"])
def test_train_hands_its_options_on(option, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(training, "train", lambda *args, log, **kwargs: calls.append((*args, kwargs)))
    line = ["pages", "train", option, "tiny-reader", "--out", str(tmp_path), "--seed", "4", "--resume"]
    assert CliRunner().invoke(app, line).exit_code == 0
    assert calls == [("tiny-reader", tmp_path, 4, {"resume": True})]


def test_train_refuses_an_unknown_reader_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sparsemm", "pages", "train", "--reader", "x", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sparsemm: reader='x' is not valid: expected one of tiny-reader, tiny-reader-")


def test_tasks_writes_all_files(tmp_path):
    done = CliRunner().invoke(app, ["pages", "tasks", str(tmp_path / "data")])
    assert done.exit_code == 0, done.output
    names = [path.name for path in (tmp_path / "data").iterdir()]
    assert len(names) == len(TASKS)
    assert set(names) >= {"pages_ocr.parquet", "pages_qa.parquet"}
    assert all(name in done.output for name in names)


def test_benchmarks_says_how_to_run_them(tmp_path):
    done = CliRunner().invoke(app, ["pages", "benchmarks", str(tmp_path), "--count", "1"])
    assert done.exit_code == 0, done.output
    assert f"cd {tmp_path} && sparsemm eval" in done.output
    assert len(list(tmp_path.glob("*/*/*.parquet"))) == 7


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for line in (["tasks"], ["benchmarks"], ["train", "--reader", "tiny-reader", "--out"]):
        done = CliRunner().invoke(app, ["pages", *line, str(tmp_path / "file")])
        assert isinstance(done.exception, ConfigError), line
        assert "a folder that can be written to (Not a directory)" in str(done.exception)


@pytest.mark.parametrize("line", [["--help"], ["pages", "--help"], ["pages", "train", "--help"]])
def test_help_loads_nothing_heavy(line):
    code = f"""
import json, sys
from typer.testing import CliRunner
from sparsemm_eval.cli import app
done = CliRunner().invoke(app, {line!r})
assert done.exit_code == 0, done.output
print(json.dumps([name for name in ("torch", "transformers", "datasets") if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
