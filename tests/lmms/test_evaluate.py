"""The front around lmms-eval: with a stand-in for its process, and once with the real one that fails."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
import typer
from typer.testing import CliRunner

from sparsemm_eval.errors import ConfigError, EvaluationError, UnsupportedError
from sparsemm_eval.lmms import evaluate as front
from tests.lmms_process import environment, is_shipped

RESULTS = {
    "config": {"model": "m", "model_args": ""},
    "results": {"pages_qa": {"alias": "pages_qa", "samples": 1, "exact_match,none": 1.0}},
}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Put a script in lmms-eval's place; the fixture takes its code and returns the working directory."""

    def install(code):
        script = tmp_path / "lmms.py"
        script.write_text(textwrap.dedent(code))
        monkeypatch.setattr(front, "_launcher", lambda processes: [sys.executable, str(script)])
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return install


def writing(record):
    return f"""
        import json, pathlib, sys
        target = pathlib.Path("runs/p/20260102_030405_results.json")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text({json.dumps(record)!r})
        pathlib.Path("seen.json").write_text(json.dumps(sys.argv[1:]))
    """


def runner():
    app = typer.Typer()
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("eval", context_settings=settings)(front.command)
    # With a second command, typer keeps the first one's name.
    app.command("other")(lambda: None)
    return lambda *arguments: CliRunner().invoke(app, ["eval", *arguments])


ARGUMENTS = ("--model", "m", "--tasks", "pages_qa", "-b", "2", "--gen_kwargs=a=1")


def test_results_are_named_and_arguments_passed_on(stand_in):
    folder = stand_in(writing(RESULTS))
    outcome = runner()(*ARGUMENTS)
    assert outcome.exit_code == 0, outcome.output
    assert "results: runs/p/20260102_030405_results.json" in outcome.output
    assert json.loads((folder / "seen.json").read_text())[: len(ARGUMENTS)] == list(ARGUMENTS)


def test_exit_status_zero_without_results_is_a_failure(stand_in):
    stand_in("print('nothing done')")
    outcome = runner()(*ARGUMENTS)
    assert outcome.exception.exit_code == 1
    assert "wrote no results" in str(outcome.exception)


def test_results_without_a_requested_task_are_a_failure(stand_in):
    stand_in(writing(RESULTS))
    with pytest.raises(EvaluationError, match="no score for pages_ocr"):
        front.evaluate(["--model", "m", "--tasks", "pages_qa,pages_ocr"])


def test_results_from_before_are_a_failure(stand_in):
    folder = stand_in("pass")
    exec(textwrap.dedent(writing(RESULTS)))
    assert (folder / "runs/p").is_dir()
    with pytest.raises(EvaluationError, match="wrote no results"):
        front.evaluate(["--model", "m", "--tasks", "pages_qa"])


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("raise SystemExit(3)", "exit status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL"),
    ],
)
def test_a_failing_process_is_a_failure_even_with_results(stand_in, code, text):
    stand_in(textwrap.dedent(writing(RESULTS)) + code)
    with pytest.raises(EvaluationError, match=text):
        front.evaluate(["--model", "m", "--tasks", "pages_qa"])


def test_additions_to_the_environment(stand_in):
    folder = stand_in("import os; open('seen', 'w').write(os.environ['ADDED'])")
    with pytest.raises(EvaluationError):
        front.evaluate(["--model", "m", "--tasks", "pages_qa"], environment={"ADDED": "yes"})
    assert (folder / "seen").read_text() == "yes"


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_nothing_is_left_behind_by_a_command_that_is_ended(tmp_path, number):
    (tmp_path / "lmms.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    code = (
        "import sys; from sparsemm_eval.lmms import evaluate as front; "
        "front._launcher = lambda processes: [sys.executable, 'lmms.py']; "
        "front.evaluate(['--model', 'm', '--tasks', 'pages_qa'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as command:
        assert command.stdout.readline().startswith("$ ")
        left = psutil.Process(int(command.stdout.readline()))
        command.send_signal(number)
        command.wait(60)
        assert psutil.wait_procs([left], timeout=60)[1] == []


MASK = ["heads", "mask", "--model", "tiny-reader", "--tasks", "pages_qa", "--out", "out"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
@pytest.mark.skipif(not is_shipped("tiny-reader"), reason="no trained reader is shipped")
@pytest.mark.parametrize("line", [["demo", "--output", "out"], MASK])
def test_a_killed_command_leaves_no_lmms_eval_behind(line, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-m", "sparsemm_eval.cli", *line],
        cwd=tmp_path,
        env={**os.environ, **environment(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as command:
        while not any(is_lmms_eval(process) for process in psutil.Process(command.pid).children(True)):
            assert command.poll() is None, "no evaluation was started"
            time.sleep(0.1)
        time.sleep(3)
        left = psutil.Process(command.pid).children(recursive=True)
        assert any(map(is_lmms_eval, left))
        command.kill()
        command.wait(60)
        assert psutil.wait_procs(left, timeout=60)[1] == []


def is_lmms_eval(process):
    """Whether it is lmms-eval's own process, and not one of ours that starts it."""
    try:
        line = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
    return "lmms_eval" in line.replace("-", "_") and "-m sparsemm_eval" not in line


def test_captions_need_java(stand_in, monkeypatch):
    stand_in("raise SystemExit('never started')")
    monkeypatch.setenv("PATH", "")
    for task in ("textcaps_val", "sparsemm_suite"):
        with pytest.raises(UnsupportedError, match="java"):
            front.evaluate(["--model", "m", "--tasks", task])


def test_the_judge_needs_a_key(stand_in, monkeypatch, capsys):
    stand_in("pass")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(EvaluationError):
        front.evaluate(["--model", "m", "--tasks", "mmbench_en_dev"])
    assert "mmbench_en_dev_static needs no key" in capsys.readouterr().err


def test_missing_tasks(stand_in):
    stand_in("raise SystemExit('never started')")
    with pytest.raises(ConfigError, match="--tasks"):
        front.evaluate(["--model", "m"])


def test_an_output_path_that_is_no_folder_is_refused_before_anything_starts(stand_in):
    folder = stand_in("raise SystemExit('never started')")
    (folder / "file").write_text("")
    with pytest.raises(ConfigError, match="--output_path='file'"):
        front.evaluate(["--model", "m", "--tasks", "pages_qa", "--output_path", "file"])


def test_several_processes_start_under_torch_distributed(monkeypatch):
    line = front._launcher(3)
    assert line[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
    cpu = {"ACCELERATE_USE_CPU": "true"}
    assert front._device_environment(["--model_args", "device=cpu"], 2) == cpu
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert front._device_environment(["--model_args", "pretrained=x"], 2) == {}
    assert front._device_environment(["--device", "cpu"], 2) == cpu
    assert front._device_environment(["--device", "cpu"], 1) == {}


def test_the_real_command_fails_loudly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in environment(tmp_path).items():
        monkeypatch.setitem(os.environ, name, value)
    arguments = ("--model", "oracle", "--model_args", "fail=true", "--tasks", "pages_qa", "--limit", "1")
    outcome = runner()(*arguments)
    assert outcome.exception.exit_code == 1
    assert "wrote no results" in str(outcome.exception)
