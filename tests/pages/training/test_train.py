import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.pages.readers.families import FAMILIES, build
from sparsemm_eval.pages.training.batches import IGNORE, make_batch
from sparsemm_eval.pages.training.model import TrainingModel
from sparsemm_eval.pages.training.optimizer import Optimizer
from sparsemm_eval.pages.training.stages import RECIPES, train_step
from sparsemm_eval.pages.training.train import train

STAGES = RECIPES["tiny-reader"]


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        pytest.param(name, stage, id=f"{name}, {stage.name}")
        for name, stages in RECIPES.items()
        for stage in stages
    ],
)
def test_loss_falls_on_one_batch(name, stage):
    model, processor = build(name)
    reader = TrainingModel(model, processor.tokenizer)
    parts = reader.parts()
    batch = make_batch(FAMILIES[name], processor.tokenizer, 0, 0, (8, 16), 2)
    optimizer = Optimizer([named for part in stage.parts for named in parts[part]], 1e-3)
    losses = [train_step(stage, reader, batch, optimizer, 1.0).loss for _ in range(6)]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]


def test_batches_are_deterministic_and_answer_only():
    _, processor = build("tiny-reader")
    tokenizer = processor.tokenizer
    first, second = (make_batch(FAMILIES["tiny-reader"], tokenizer, 0, 3, (8, 16), 4, 0.5) for _ in range(2))
    for name in ("pixels", "suffix", "targets", "answers", "reading"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    for row, page in enumerate(first.pages):
        answers = tokenizer.decode(first.targets[row][first.targets[row] != IGNORE]).split("</s>")[:-1]
        if first.reading[row]:
            assert answers == [page.text()]
        else:
            assert sorted(answers) == sorted(entry.value for entry in page.entries)[: len(answers)] or set(
                answers
            ) <= {entry.value for entry in page.entries}


def test_recall_lists_the_entries_in_another_order_and_asks_for_the_values():
    _, processor = build("tiny-reader-qwen2vl")
    tokenizer = processor.tokenizer
    batch = make_batch(FAMILIES["tiny-reader-qwen2vl"], tokenizer, 0, 3, (8, 16), 16, recall=1.0)
    assert not batch.reading.any()
    orders = set()
    for row in range(6, 16):  # the first six look values up
        entries = batch.pages[row].entries
        listed = (
            tokenizer.decode(batch.suffix[row]).split("assistant\n")[1].split("<|endoftext|>")[0].split("\n")
        )
        assert sorted(listed) == sorted(entry.text for entry in entries)
        orders.add(tuple(listed) == tuple(entry.text for entry in entries))
        asked = tokenizer.decode(batch.targets[row][batch.targets[row] != IGNORE])
        assert asked == "".join(line.split()[1] for line in listed)
    assert False in orders


def test_a_hint_is_the_first_character_at_the_end_of_the_question():
    _, processor = build("tiny-reader-qwen2vl")
    tokenizer = processor.tokenizer
    plain, hinted = (
        make_batch(FAMILIES["tiny-reader-qwen2vl"], tokenizer, 0, 3, (8, 16), 16, hint=hint)
        for hint in (False, True)
    )
    assert torch.equal(plain.suffix, hinted.suffix)
    places = (plain.targets != hinted.targets).nonzero().tolist()
    assert len(places) == sum(min(12, len(page.entries)) for page in plain.pages[:6])
    for row, position in places:
        assert tokenizer.decode(plain.suffix[row, position]) == "?"
        after = plain.answers[row, position:]
        first = position + int((after >= 0).nonzero()[0])
        assert hinted.targets[row, position] == plain.targets[row, first]
        assert hinted.answers[row, position] == plain.answers[row, first]


def test_pages_as_lines_are_counted_like_text():
    model, processor = build("tiny-reader-qwen2vl")
    reader = TrainingModel(model, processor.tokenizer)
    batch = make_batch(FAMILIES["tiny-reader-qwen2vl"], processor.tokenizer, 0, 3, (8, 16), 2)
    features = reader.text_features(batch)
    whole = torch.cat(
        [model.get_input_embeddings()(ids) for ids in (batch.prefix.expand(2, -1), batch.suffix)], 1
    )
    count = len(batch.prefix)
    embedded = torch.cat([whole[:, :count], features, whole[:, count:]], 1)
    hidden = model.model.language_model(inputs_embeds=embedded).last_hidden_state
    expected = model.lm_head(hidden[:, count + features.shape[1] :][batch.targets != IGNORE])
    torch.testing.assert_close(reader.logits(batch, features, as_line=True), expected)
    assert not torch.allclose(reader.logits(batch, features), expected)


def test_optimizer_moves_only_what_it_was_given():
    model, processor = build("tiny-reader")
    reader = TrainingModel(model, processor.tokenizer)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    batch = make_batch(FAMILIES["tiny-reader"], processor.tokenizer, 0, 0, (8, 16), 2)
    vision = reader.parts()["vision"]
    align = next(stage for stage in STAGES if stage.name == "align")
    train_step(align, reader, batch, Optimizer(vision, 1e-3), 1.0)
    changed = {
        name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)
    }
    assert changed
    assert changed <= {name for name, _ in vision}


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


def test_resuming_another_training_is_refused(tmp_path):
    stages = [replace(STAGES[0], steps=1, sizes=((8, 16, 2, 1.0),))]
    train("tiny-reader", tmp_path, seed=3, stages=stages, proof=(0, 0), log=lambda line: None)
    with pytest.raises(ConfigError, match="seed 4"):
        train("tiny-reader", tmp_path, seed=4, stages=stages, proof=(0, 0), resume=True)
