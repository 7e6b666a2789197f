"""What a W&B run of ``lmms-eval --wandb_args`` holds, by W&B's own offline files."""

import sys

import pytest

from tests import lmms_process
from tests.lmms_process import SECRETS, files_with_secrets
from tests.model_wrappers.task_folder import write_task
from tests.tracking.offline_runs import read_sessions


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
    variables = {"WANDB_MODE": "offline", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **SECRETS}
    done = lmms_process.run(line, tmp_path, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert files_with_secrets(tmp_path, done.stdout + done.stderr) == []
    (run,) = read_sessions(tmp_path)
    wanted = {"family": "llava", "method": "sparsemm", "budget": 40, "window": 8, "ratio": 0.3}
    wanted |= {"head_scores": "tiny-reader", "decode": "eager", "processes": processes, "batch_size": 2}
    assert wanted.items() <= run.config.items()
    assert run.summary["samples"] == len(pages)
    assert 0 < run.summary["effective_budget"] <= 40
    assert f"{name}/exact_match" in run.summary
