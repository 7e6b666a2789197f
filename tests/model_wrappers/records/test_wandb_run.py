"""What a W&B run of ``lmms-eval --wandb_args`` holds, by W&B's own offline files."""

import os
import subprocess
import sys

import pytest

from sparsemm_eval.model_wrappers.records.wandb_run import leave_it_to_rank_zero
from tests.model_wrappers.task_folder import write_task
from tests.study.offline_runs import read_sessions

MODELS = ("llava_snapkv", "vlm_sparsemm")


@pytest.mark.parametrize(
    ("rank", "arguments", "quiet"),
    [
        ("1", ["--model", "llava_snapkv", "--tasks", "x"], True),
        ("1", ["--model=vlm_sparsemm"], True),
        ("1", ["--config", "run.yaml"], True),
        ("1", ["--model", "llava_hf"], False),
        ("0", ["--model", "llava_snapkv"], False),
    ],
)
def test_other_processes_of_our_models_log_nothing(rank, arguments, quiet, tmp_path, monkeypatch):
    (tmp_path / "run.yaml").write_text("- model: llava_snapkv\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WANDB_MODE", "offline")
    leave_it_to_rank_zero(MODELS, arguments)
    assert os.environ["WANDB_MODE"] == ("disabled" if quiet else "offline")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_plain_run_has_flat_config_and_what_was_measured(processes, documents, tmp_path):
    pages = [
        {**page, "question": f"{i} {page['question']}"} for i, page in enumerate(documents) if page["image"]
    ]
    name = write_task(tmp_path, pages, ["x"] * len(pages))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    line = [sys.executable, *(launcher if processes > 1 else ()), "-m", "lmms_eval"]
    line += ["--model", "vlm_sparsemm", "--tasks", name, "--include_path", str(tmp_path), "--batch_size", "2"]
    line += ["--model_args", "pretrained=tiny-reader,budget=40,window=8,ratio=0.3,journal=off"]
    line += ["--wandb_args", "project=plain", "--output_path", str(tmp_path / "out"), "--device", "cpu"]
    variables = {"WANDB_MODE": "offline", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        line,
        cwd=tmp_path,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = read_sessions(tmp_path)
    wanted = {"family": "llava", "method": "sparsemm", "budget": 40, "window": 8, "ratio": 0.3}
    wanted |= {"head_scores": "tiny-reader", "decode": "eager", "processes": processes, "batch_size": 2}
    assert wanted.items() <= run.config.items()
    assert run.summary["samples"] == len(pages)
    assert 0 < run.summary["effective_budget"] <= 40
    assert f"{name}/exact_match" in run.summary
