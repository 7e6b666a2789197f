"""The suite for bare GPU machines, with small shapes on a CPU."""

import json
import subprocess
import sys

import pytest
import torch

from sparsemm_eval.bench import decode_attention, gpu_suite
from sparsemm_eval.errors import ConfigError

BLOCKED = (
    "lmms_eval",
    "typer",
    "rich",
    "pandas",
    "wandb",
    "datasets",
    "tqdm.rich",
    "loguru",
    "platformdirs",
    "rapidfuzz",
    "jinja2",
)

CHECK = f"""
import sys

for name in {BLOCKED!r}:
    sys.modules[name] = None  # as if it were not installed
for name in ("head_scores", "model_wrappers", "tasks"):
    sys.modules["sparsemm_eval." + name] = None  # mapped by an installation only
import sparsemm_eval.bench.gpu_suite as suite
suite.main(["--tiny", "--out", sys.argv[1], "--only", "kernel is right", "long prompts"])
"""


def test_needs_only_torch_and_transformers(tmp_path):
    done = subprocess.run([sys.executable, "-c", CHECK, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sections = json.loads((tmp_path / "gpu_suite.json").read_text())
    assert list(sections) == ["environment", "kernel is right", "long prompts"]
    assert not any("error" in section for section in sections.values()), done.stderr
    assert "ms/token" in done.stdout


def test_a_failing_section_leaves_the_others(tmp_path, monkeypatch, capsys):
    def fail(suite):
        raise RuntimeError("on purpose")

    monkeypatch.setattr(
        gpu_suite,
        "SECTIONS",
        (("environment", gpu_suite.environment, 5), ("broken", fail, 5), ("late", fail, 0)),
    )
    suite = gpu_suite.main(["--tiny", "--out", str(tmp_path)])
    assert "on purpose" in suite.sections["broken"]["error"]
    assert suite.sections["late"] == {"error": "no time left"}
    assert "copy_gb_per_s" in suite.sections["environment"]
    assert "FAIL broken" in capsys.readouterr().out


def test_it_goes_on_with_what_is_missing_failed_or_was_cut_short(tmp_path, monkeypatch):
    ran = []

    def section(name, result):
        def run(suite):
            ran.append(name)
            if isinstance(result, Exception):
                raise result
            return result

        return (name, run, 60)

    memory = {"rows": [{"error": "out of memory: 1 GB"}]}
    cut = {"rows": [{"method": "m", "error": "no time left"}]}
    sections = [
        section("done", {}),
        section("large", memory),
        section("cut", cut),
        section("broken", KeyError()),
    ]
    environment = ("environment", gpu_suite.environment, 5)
    monkeypatch.setattr(gpu_suite, "SECTIONS", (environment, *sections[:-1]))
    gpu_suite.main(["--tiny", "--out", str(tmp_path)])
    monkeypatch.setattr(gpu_suite, "SECTIONS", (environment, *sections))
    for again in (["cut", "broken"], ["cut", "broken"]):
        ran.clear()
        gpu_suite.main(["--tiny", "--out", str(tmp_path)])
        assert ran == again
    ran.clear()
    gpu_suite.main(["--tiny", "--out", str(tmp_path), "--only", "done"])
    assert ran == ["done"]


def test_results_of_another_machine_or_other_code_are_not_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_suite, "SECTIONS", (("environment", gpu_suite.environment, 5),))
    gpu_suite.main(["--tiny", "--out", str(tmp_path)])
    path = tmp_path / gpu_suite.RESULTS
    found = json.loads(path.read_text())
    for name, value in (("device", "another GPU"), ("torch", "2.0"), ("source", "0" * 64)):
        changed = {"environment": found["environment"] | {name: value}}
        path.write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match=f"out=.*another folder: here are results of {name}='{value}'"):
            gpu_suite.main(["--tiny", "--out", str(tmp_path)])
        assert json.loads(path.read_text()) == changed
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"out=.*this suite's"):
        gpu_suite.main(["--tiny", "--out", str(tmp_path)])


def test_wrong_arguments_are_refused_before_anything_runs(monkeypatch, capsys):
    monkeypatch.setattr(gpu_suite, "run", lambda *_: pytest.fail("run"))
    with pytest.raises(ConfigError, match=r"out=.*a folder that can be written to"):
        gpu_suite.main(["--tiny", "--out", __file__])
    with pytest.raises(ConfigError, match="kernel='foo'"):
        gpu_suite.main(["--tiny", "--kernel", "foo"])
    with pytest.raises(SystemExit, match="2"):
        gpu_suite.main(["--tiny", "--only", "nothing"])
    assert "invalid choice: 'nothing'" in capsys.readouterr().err


@pytest.mark.slow
def test_all_sections(tmp_path):
    suite = gpu_suite.main(["--tiny", "--out", str(tmp_path)])
    assert [name for name, section in suite.sections.items() if "error" in section] == []
    assert set(suite.sections) == {name for name, *_ in gpu_suite.SECTIONS}
    assert all("error" not in row for row in suite.sections["long prompts"]["rows"])


def test_a_wrong_kernel_is_noticed(monkeypatch):
    from sparsemm_eval.cache.ragged_store import RaggedStore

    right = list(decode_attention.checks(torch.device("cpu"), "torch", (torch.float32,)))
    assert all(passed for *_, passed in right)
    original = RaggedStore.attend
    monkeypatch.setattr(RaggedStore, "attend", lambda *args: original(*args) * 1.01)
    wrong = list(decode_attention.checks(torch.device("cpu"), "torch", (torch.float32,)))
    assert not any(passed for *_, passed in wrong)
