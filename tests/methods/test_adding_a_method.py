"""docs/adding-a-method.md as written: its code, its commands, and what they promise."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsemm_eval import CompressionConfig
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.methods import Method, PromptView, keep, register
from sparsemm_eval.methods.registry import _REGISTRY, _Registry
from tests import lmms_process
from tests.lmms_process import environment
from tests.methods.matrix import registered

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
MODULE, CHECK = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my_method.py").write_text(MODULE)
    return tmp_path


def run(folder, *line):
    plugin = {"SPARSEMM_PLUGINS": "my_method", "PYTHONPATH": str(folder), "LMMS_EVAL_PLUGINS": ""}
    return lmms_process.run(line, folder, **{**environment(folder), **plugin})


def method_of_the_page():
    namespace = {"__name__": "my_method"}
    exec(compile(MODULE, "my_method.py", "exec"), namespace)
    return namespace["METHOD"]


def test_it_is_as_short_as_it_says():
    lines = [line for line in MODULE.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 18


def test_its_check_passes(folder):
    done = run(folder, sys.executable, "-c", CHECK)
    assert done.returncode == 0, done.stderr


def test_it_keeps_what_the_shipped_method_keeps():
    generator = torch.Generator().manual_seed(0)
    valid = torch.stack([torch.arange(90) >= 90 - n for n in (90, 40, 10)])
    views = [
        PromptView(*(torch.randn(3, heads, 90, 8, generator=generator) for heads in (4, 2)), valid=valid)
        for _ in range(3)
    ]
    with registered(method_of_the_page()):
        ours = keep(CompressionConfig("my_streaming", budget=24, my_sinks=3), views)
        theirs = keep(CompressionConfig("streamingllm", budget=24, sinks=3), views)
        assert all(map(torch.equal, ours, theirs))
        mixed = CompressionConfig("snapkv", budget=24, window=8, score="my_streaming")
        assert all(mask[..., -24:].sum() == mask.sum() for mask in keep(mixed, views))


def test_its_command_evaluates(folder):
    (command,) = re.findall(r"^    (lmms-eval (?:.*\\\n)*.*)$", PAGE, flags=re.M)
    line = command.replace("\\\n", " ").replace("sparsemm tasks", f"{sys.executable} -m sparsemm_eval tasks")
    done = run(folder, "bash", "-c", line.replace("lmms-eval", f"{sys.executable} -m lmms_eval", 1))
    (results,) = folder.glob("runs/mine/**/*_results.json")
    record = json.loads(results.read_text())
    assert record["throughput"]["avg_effective_budget"] == 64, done.stderr
    assert record["throughput"]["avg_nominal_my_sinks"] == 2


def test_it_is_part_of_studies(folder):
    (folder / "study.yaml").write_text(
        "name: mine\nmodels: [{name: r, pretrained: tiny-reader}]\nmethods: [snapkv, my_streaming]\n"
        "budgets: [32]\ntasks: [pages_qa]\nknobs: {window: 8, my_sinks: [0, 2]}\n"
    )
    done = run(folder, sys.executable, "-m", "sparsemm_eval", "study", "run", "study.yaml", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("vlm_my_streaming") == 2
    assert done.stdout.count("vlm_snapkv") == 1
    assert "my_sinks=2" in done.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("raise ValueError('on purpose')", r"SPARSEMM_PLUGINS='my_method' .*\(ValueError: on purpose\)"),
        ("x = 1", "SPARSEMM_PLUGINS='my_method' .*a module with METHOD"),
        (MODULE.replace('"my_streaming"', '"snapkv"'), "method='snapkv' .*a name that no other method has"),
    ],
)
def test_a_plugin_that_cannot_work_is_named(tmp_path, content, message, monkeypatch):
    (tmp_path / "my_method.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SPARSEMM_PLUGINS", "my_method")
    monkeypatch.delitem(sys.modules, "my_method", raising=False)
    with pytest.raises(ConfigError, match=message):
        _Registry().look()
    monkeypatch.delitem(sys.modules, "my_method", raising=False)


def test_the_command_says_so_in_one_line(folder):
    (folder / "my_method.py").write_text("x = 1")
    (folder / "study.yaml").write_text("name: mine\n")
    done = run(folder, sys.executable, "-m", "sparsemm_eval", "study", "run", "study.yaml", "--dry-run")
    assert done.returncode == 2
    assert re.search("SPARSEMM_PLUGINS='my_method' .*a module with METHOD", done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_registered_by_hand_and_found_by_entry_point(monkeypatch, tmp_path):
    method = method_of_the_page()
    with registered(method):
        assert register(method) is method
        with pytest.raises(Exception, match="a name that no other method has"):
            register(Method("my_streaming", "Another", score=method.score, allocate=method.allocate))
    (tmp_path / "my_method.py").write_text(MODULE)
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sparsemm_eval.methods]\nmine = my_method\n")
    code = "from sparsemm_eval.methods import methods; print(methods()['my_streaming'].title)"
    surroundings = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=surroundings, capture_output=True, text=True, check=False
    )
    assert done.stdout == "My StreamingLLM\n", done.stderr
    assert "my_streaming" not in _REGISTRY.methods
