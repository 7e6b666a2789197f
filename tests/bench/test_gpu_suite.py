"""The suite for bare GPU machines, with small shapes on a CPU."""

import json
import subprocess
import sys

import pytest
import torch

from sparsemm_eval.bench import gpu_suite, kernel_checks
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
sys.modules["sparsemm_eval.head_scores"] = None  # mapped by an installation only
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

    right = list(kernel_checks.checks(torch.device("cpu"), "torch", (torch.float32,)))
    assert all(check.passed for check in right)
    original = RaggedStore.attend
    monkeypatch.setattr(RaggedStore, "attend", lambda *args: original(*args) * 1.01)
    wrong = list(kernel_checks.checks(torch.device("cpu"), "torch", (torch.float32,)))
    assert not any(check.passed for check in wrong)
