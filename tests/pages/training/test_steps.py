import math

import pytest
import torch

from sparsemm_eval.pages.readers.recipe import FOUNDATION
from sparsemm_eval.pages.readers.registry import READERS, build
from sparsemm_eval.pages.training.batches import make_batch
from sparsemm_eval.pages.training.model import TrainingModel
from sparsemm_eval.pages.training.steps import Optimizer, followed_by, train_step

PLAIN = FOUNDATION[0]


# What a step depends on; stages that differ in nothing else are one case.
KINDS = {
    (name, stage.source, stage.parts, stage.as_line): stage
    for name, reader in READERS.items()
    for stage in reader.recipe
}


@pytest.mark.parametrize(
    ("name", "stage"),
    [pytest.param(name, stage, id=f"{name}, {stage.name}") for (name, *_), stage in KINDS.items()],
)
def test_loss_falls_on_one_batch(name, stage):
    model, processor = build(name)
    learner = TrainingModel(model, processor.tokenizer)
    parts = learner.parts()
    batch = make_batch(READERS[name], processor.tokenizer, PLAIN, 0, 0, (8, 16), 2)
    optimizer = Optimizer([named for part in stage.parts for named in parts[part]], 1e-3)
    losses = [train_step(stage, learner, batch, optimizer, 1.0)["loss"] for _ in range(4)]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]


def test_optimizer_moves_only_what_it_was_given():
    model, processor = build("tiny-reader")
    learner = TrainingModel(model, processor.tokenizer)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    batch = make_batch(READERS["tiny-reader"], processor.tokenizer, PLAIN, 0, 0, (8, 16), 2)
    vision = learner.parts()["vision"]
    align = next(stage for stage in FOUNDATION if stage.name == "align")
    train_step(align, learner, batch, Optimizer(vision, 1e-3), 1.0)
    changed = {
        name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)
    }
    assert changed
    assert changed <= {name for name, _ in vision}


def test_running_scores_skip_what_was_not_measured():
    mixed = followed_by({"loss": 2.0, "qa": 1.0}, {"loss": 1.0, "ocr": 0.5})
    assert mixed == {"loss": pytest.approx(1.9), "qa": 1.0, "ocr": 0.5}
