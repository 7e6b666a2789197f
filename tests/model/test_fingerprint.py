"""The fingerprint follows content: of the weights that are loaded, and of the files beside them."""

import hashlib
import json
import os

import pytest

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.scores.lookup import resolve
from sparsemm_eval.model import fingerprint as module
from sparsemm_eval.model import shipped
from sparsemm_eval.model.fingerprint import local_fingerprint


def fingerprint(folder):
    return local_fingerprint(str(folder), "model")


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    for name, content in {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "model.safetensors": b"weights",
        "README.md": b"text",
        "training.json": b"{}",
    }.items():
        (made / name).write_bytes(content)
    return made


def test_one_file_is_its_own_sha256(folder):
    assert fingerprint(folder)["weights"] == f"sha256:{sha256(b'weights')}"


@pytest.mark.parametrize("name", shipped.NAMES)
def test_shipped_scores_name_the_weights_of_their_reader(name):
    assert resolve(name).weights == fingerprint(name)["weights"]


def test_what_decides_answers_is_told_apart(folder):
    before = fingerprint(folder)
    for name in ("README.md", "training.json"):
        (folder / name).write_bytes(b"changed")
    assert fingerprint(folder) == before
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "preprocessor_config.json"):
        (folder / name).write_bytes(b"changed")
        after = fingerprint(folder)
        assert after["weights"] == before["weights"]
        assert after["files"] != before["files"]
        before = after
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    assert fingerprint(folder) == {**before, "weights": f"sha256:{sha256(b'WEIGHTS')}"}


def test_parts_are_those_the_index_lists(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not loaded where there are safetensors")
    (folder / "consolidated.safetensors").write_bytes(b"not loaded either")
    index = {
        "weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").write_bytes(b"one")
    for torn in ("{", "[]", '{"weight_map": []}'):
        (folder / "model.safetensors.index.json").write_text(torn)
        with pytest.raises(ConfigError, match=r"^model=.*complete checkpoint"):
            fingerprint(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"^model=.*it lacks model-2\.safetensors"):
        fingerprint(folder)
    (folder / "model-2.safetensors").write_bytes(b"two")
    listed = [["model-1.safetensors", sha256(b"one")], ["model-2.safetensors", sha256(b"two")]]
    assert fingerprint(folder)["weights"] == f"sha256:{sha256(json.dumps(listed).encode())}"


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="it holds no weights"):
        fingerprint(folder)


def test_digests_of_large_files_are_remembered_until_the_file_changes(folder, monkeypatch):
    monkeypatch.setattr(module, "LARGE", 3)
    weights, before = folder / "model.safetensors", fingerprint(folder)
    times = weights.stat()
    # The same size, time and inode: what is remembered counts, so nothing was read.
    with weights.open("r+b") as file:
        file.write(b"WEIGHTS")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint(folder) == before
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert fingerprint(folder)["weights"] == f"sha256:{sha256(b'WEIGHTS')}"
    [*memory] = module.user_cache("digests").iterdir()
    assert len(memory) == 2
    for path in memory:
        path.write_bytes(b"\xff damaged")
    assert fingerprint(folder)["weights"] == f"sha256:{sha256(b'WEIGHTS')}"


def test_a_cache_that_cannot_be_written_is_no_error(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "LARGE", 3)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fingerprint(folder)["weights"] == f"sha256:{sha256(b'weights')}"


def test_a_blob_of_the_hubs_cache_is_not_read(folder, tmp_path):
    (tmp_path / "blobs").mkdir()
    blob = tmp_path / "blobs" / sha256(b"what it was when it was downloaded")
    blob.write_bytes(b"never read")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(blob)
    assert fingerprint(folder)["weights"] == f"sha256:{blob.name}"
