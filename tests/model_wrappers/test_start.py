"""The environment that lmms-eval finds when a command line names one of our models."""

import os

import pytest

from sparsemm_eval.model_wrappers.manifests import settle

MODELS = ("llava_snapkv", "vlm_sparsemm")


@pytest.fixture
def environment(monkeypatch, tmp_path):
    (tmp_path / "run.yaml").write_text("- model: llava_snapkv\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "")
    return monkeypatch


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
def test_other_processes_of_our_models_log_nothing(rank, arguments, quiet, environment):
    environment.setenv("RANK", rank)
    settle(MODELS, arguments)
    assert os.environ["WANDB_MODE"] == ("disabled" if quiet else "offline")


@pytest.mark.parametrize(
    ("arguments", "hidden"),
    [
        (["--model", "llava_snapkv"], True),
        (["--model", "llava_hf"], False),
        (["--model", "llava_snapkv", "--hf_hub_log_args", "push_results_to_hub=True"], False),
    ],
)
def test_the_hubs_token_keeps_working_where_it_is_not_written_down(arguments, hidden, environment):
    from huggingface_hub import get_token

    settle(MODELS, arguments)
    assert ("HF_TOKEN" in os.environ) != hidden
    assert get_token() == "hf_x"
