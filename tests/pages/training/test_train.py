import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.model.shipped import NAMES, resolve
from sparsemm_eval.pages.readers.registry import READERS
from sparsemm_eval.pages.training.train import train

STAGES = READERS["tiny-reader"].recipe


def test_train_writes_checkpoint_and_record(tmp_path):
    stages = [replace(stage, steps=1, sizes=((8, 16, 2, 1.0),)) for stage in STAGES]
    train("tiny-reader", tmp_path, seed=3, stages=stages, proof=(2, 2), log=lambda line: None)
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["seed"] == 3
    assert record["steps"] == len(STAGES)
    assert 0 <= record["heldout"]["qa"] <= 1
    assert record["heldout"]["ocr_count"] == 2
    assert (tmp_path / "model.safetensors").exists()


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path):
    stages = [replace(stage, steps=1, sizes=((8, 16, 2, 1.0),)) for stage in STAGES[-3:]]
    quiet = {"proof": (0, 0), "log": lambda line: None}
    train("tiny-reader", tmp_path / "whole", seed=3, stages=stages, **quiet)
    train("tiny-reader", tmp_path / "parts", seed=3, stages=stages[:1], **quiet)
    train("tiny-reader", tmp_path / "parts", seed=3, stages=stages, resume=True, **quiet)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    record = json.loads((tmp_path / "parts" / "training.json").read_text())
    assert [stage["stage"] for stage in record["stages"]] == [stage.name for stage in stages]
    assert record["steps"] == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_training_is_recognised_as_finished(name, tmp_path):
    files = [file for file in resolve(name).iterdir() if file.is_file()]
    copies = [Path(shutil.copy(file, tmp_path)) for file in files]
    record = train(name, tmp_path, proof=(0, 0), log=lambda line: None, resume=True)
    assert record == json.loads((resolve(name) / "training.json").read_text())
    assert [copy.read_bytes() for copy in copies] == [file.read_bytes() for file in files]


def test_resuming_another_training_is_refused(tmp_path):
    stages = [replace(STAGES[0], steps=1, sizes=((8, 16, 2, 1.0),))]
    train("tiny-reader", tmp_path, seed=3, stages=stages, proof=(0, 0), log=lambda line: None)
    with pytest.raises(ConfigError, match="seed 4"):
        train("tiny-reader", tmp_path, seed=4, stages=stages, proof=(0, 0), resume=True)
    (tmp_path / "training.json").write_text("{}")
    with pytest.raises(ConfigError, match="out="):
        train("tiny-reader", tmp_path, seed=3, stages=stages, proof=(0, 0), resume=True)


def test_unusable_arguments_are_named(tmp_path):
    with pytest.raises(ConfigError, match="reader='tiny'"):
        train("tiny", tmp_path)
    with pytest.raises(ConfigError, match="seed=-1"):
        train("tiny-reader", tmp_path, seed=-1)
