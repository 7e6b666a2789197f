from pathlib import Path

import pytest
import yaml

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.lmms.arguments import DEFAULT_OUTPUT, Run, command_line, complete, read
from sparsemm_eval.tasks import FOLDER

BASIC = ["--model", "m", "--model_args", "pretrained=p,budget=8", "--tasks", "a,b"]


def write_config(folder, contents):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(contents))
    return path


def test_reads_the_command_line():
    assert read([*BASIC, "--output_path=out", "--limit", "3"]) == [
        Run("m", "pretrained=p,budget=8", ("a", "b"), Path("out"))
    ]


def test_output_path_has_a_default():
    assert read(BASIC)[0].output_path == Path(DEFAULT_OUTPUT)


def test_reads_every_entry_of_a_file_below_the_command_line(tmp_path):
    entries = [{"model": "x", "tasks": "a", "output_path": "o1"}, {"tasks": "b,c", "output_path": "o2"}]
    config = write_config(tmp_path, entries)
    assert read(["--config", str(config), "--model", "y"]) == [
        Run("y", "", ("a",), Path("o1")),
        Run("y", "", ("b", "c"), Path("o2")),
    ]


def test_missing_tasks_are_refused():
    with pytest.raises(ConfigError, match="--tasks"):
        read(["--model", "m"])


@pytest.mark.parametrize("name", ["a.yaml", "/some/where/a.yml"])
def test_tasks_by_their_files_are_refused(name):
    with pytest.raises(ConfigError, match=f"--tasks='{name}' is not valid: expected the name of a task"):
        read(["--model", "m", "--tasks", f"b,{name}"])


def test_a_file_without_output_path_is_refused(tmp_path):
    config = write_config(tmp_path, {"model": "x", "tasks": "a"})
    with pytest.raises(ConfigError, match="--output_path"):
        read(["--config", str(config)])


@pytest.mark.parametrize("contents", [b"- 3", b"[", b"a: b: c\nd", b"", b"\xff\xfe", b"\0"])
def test_an_unusable_file_is_refused_in_one_line(tmp_path, contents):
    config = tmp_path / "config.yaml"
    config.write_bytes(contents)
    with pytest.raises(ConfigError, match="--config") as refused:
        read(["--config", str(config), "--tasks", "a"])
    assert "\n" not in str(refused.value)


def test_a_tilde_is_the_users_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_config(tmp_path, {"tasks": "a", "output_path": "~/out", "include_path": ["~/x"]})
    (run,) = read([*BASIC, "--output_path=~/out"])
    assert run.output_path == tmp_path / "out"
    (run,) = read(["--config", "~/config.yaml"])
    assert run.output_path == tmp_path / "out"
    line = complete([*BASIC, "--output_path", "~/out", "--include_path=~/mine"], tmp_path)
    assert line[: len(BASIC) + 2] == [*BASIC, "--output_path", str(tmp_path / "out")]
    assert yaml.safe_load(Path(line[-1]).read_text())[0]["include_path"][1] == str(tmp_path / "mine")
    (entry,) = yaml.safe_load(Path(complete(["--config=~/config.yaml"], tmp_path)[-1]).read_text())
    assert (entry["output_path"], entry["include_path"][1]) == (str(tmp_path / "out"), str(tmp_path / "x"))


def test_a_comma_in_a_model_arg_is_refused():
    assert command_line("m", {"a": 1, "b": None, "c": 2}, tasks="x,y") == [
        *("--model", "m", "--model_args", "a=1,c=2", "--tasks", "x,y")
    ]
    with pytest.raises(ConfigError, match="journal='x,y' is not valid: expected no comma"):
        command_line("m", {"journal": Path("x,y")})


def test_completes_without_touching_the_rest(tmp_path):
    assert complete([*BASIC, "-b", "4", "--gen_kwargs=a=1"], tmp_path) == [
        *BASIC,
        *("-b", "4", "--gen_kwargs=a=1", "--output_path", DEFAULT_OUTPUT, "--include_path", str(FOLDER)),
    ]
    assert not list(tmp_path.iterdir())


def test_our_own_folder_as_include_path_stays(tmp_path):
    given = [*BASIC, "--output_path", "o", "--include_path", str(FOLDER)]
    assert complete(given, tmp_path) == given


def test_other_include_paths_join_ours(tmp_path):
    line = complete([*BASIC, "--output_path", "o", "--include_path", "mine", "--limit", "2"], tmp_path)
    assert line[:-2] == [*BASIC, "--output_path", "o", "--limit", "2"]
    assert line[-2] == "--config"
    assert yaml.safe_load(Path(line[-1]).read_text()) == [{"include_path": [str(FOLDER), "mine"]}]


def test_a_task_by_its_file_becomes_its_name_and_its_folder(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "file.yaml").write_text("dataset_path: x\ntask: mine\n")
    line = ["--model", "m", "--tasks", f"pages_qa,{tmp_path / 'own' / 'file.yaml'}"]
    (run,) = read(line)
    assert run.tasks == ("pages_qa", "mine")
    completed = complete(line, tmp_path)
    assert "--tasks" not in completed
    (entry,) = yaml.safe_load(Path(completed[-1]).read_text())
    assert entry == {"include_path": [str(FOLDER), str(tmp_path / "own")], "tasks": "pages_qa,mine"}


def test_a_plugins_tasks_are_on_the_path(tmp_path, monkeypatch):
    (tmp_path / "plug" / "tasks").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LMMS_EVAL_PLUGINS", "plug,not_there")
    completed = complete(["--model", "m", "--tasks", "mine"], tmp_path)
    (entry,) = yaml.safe_load(Path(completed[-1]).read_text())
    assert entry["include_path"] == [str(FOLDER), str(tmp_path / "plug" / "tasks")]


def test_include_paths_of_a_file_join_ours(tmp_path):
    entries = [
        {"tasks": "a", "output_path": "o", "include_path": "mine", "limit": 2},
        {"tasks": "b", "output_path": "o", "include_path": ["x", "y"]},
    ]
    config = write_config(tmp_path, entries)
    line = complete(["--model", "m", "--config", str(config)], tmp_path)
    assert line[:-1] == ["--model", "m", "--config"]
    entries[0]["include_path"] = [str(FOLDER), "mine"]
    entries[1]["include_path"] = [str(FOLDER), "x", "y"]
    assert yaml.safe_load(Path(line[-1]).read_text()) == entries
