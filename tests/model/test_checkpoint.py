import hashlib
import shutil
from pathlib import Path

import pytest
from accelerate import dispatch_model

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.model.checkpoint import find, load
from sparsemm_eval.model.fingerprint import local_fingerprint
from sparsemm_eval.model.placement import place
from tests.model_wrappers.helpers import answers_of


def test_a_checkpoint_that_does_not_exist(build_wrapper, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"tiny-reader.*Hub id") as caught:
        build_wrapper(pretrained="no/such-checkpoint")
    assert caught.value.argument == "pretrained"
    with pytest.raises(ConfigError, match="Hub id"):
        build_wrapper(pretrained="/no/such/folder")


def test_a_checkpoint_of_another_family(build_wrapper, checkpoints):
    with pytest.raises(ConfigError, match=r"a LLaVA-NeXT checkpoint.*qwen2_vl"):
        build_wrapper(pretrained=checkpoints["tiny-reader-qwen2vl"])
    with pytest.raises(ConfigError, match=r"a Qwen2-VL checkpoint.*llava_next"):
        build_wrapper("qwen2vl_fullkv", pretrained=checkpoints["tiny-reader"])


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json", "tokenizer.json"])
def test_an_incomplete_checkpoint(build_wrapper, checkpoints, tmp_path, missing):
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoints["tiny-reader"], folder)
    (folder / missing).unlink()
    with pytest.raises(ConfigError, match="pretrained"):
        build_wrapper(pretrained=str(folder))


def test_pixel_limits(build_wrapper):
    wrapper = build_wrapper("qwen2vl_fullkv", max_pixels=100000)
    assert wrapper.identity["pixel_limits"] == {"min_pixels": 3136, "max_pixels": 100000}
    assert dict(wrapper.processor.image_processor.size)["longest_edge"] == 100000
    with pytest.raises(ConfigError, match="max_pixels"):
        build_wrapper("qwen2vl_fullkv", max_pixels=100)


def test_a_model_in_parts_answers_as_one(build_wrapper, documents):
    expected = answers_of(build_wrapper("llava_snapkv", budget=40, window=8), documents)
    by_map = build_wrapper(
        "llava_snapkv", budget=40, window=8, device=None, device_map="auto", dtype="float32"
    )
    assert answers_of(by_map, documents) == expected
    dispatched = build_wrapper("llava_snapkv", budget=40, window=8)
    layers = {f"model.language_model.layers.{layer}": "cpu" for layer in range(6)}
    rest = ("model.vision_tower", "model.multi_modal_projector", "model.image_newline", "lm_head")
    text = ("embed_tokens", "norm", "rotary_emb")
    parts = {**layers, **dict.fromkeys(rest, "cpu")}
    parts |= {f"model.language_model.{name}": "cpu" for name in text}
    dispatch_model(dispatched.model, parts, force_hooks=True)
    assert answers_of(dispatched, documents) == expected


def test_the_fingerprint_without_loading_is_that_of_a_run(build_wrapper, checkpoints):
    folder = checkpoints["tiny-reader"]
    assert local_fingerprint(folder) == build_wrapper(pretrained=folder).identity["checkpoint"]
    assert local_fingerprint("llava-hf/llava-v1.6-vicuna-7b-hf") is None


def test_every_caller_names_its_own_argument(tmp_path, checkpoints, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for given in ("no/such-checkpoint", str(tmp_path)):
        with pytest.raises(ConfigError) as caught:
            find(given, argument="model")
        assert (caught.value.argument, caught.value.value) == ("model", given)
    folder = copy_of(checkpoints["tiny-reader"], tmp_path / "copy")
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0torn")
    with pytest.raises(ConfigError, match="complete vision-language checkpoint") as caught:
        load(find(str(folder), argument="model"), place("cpu", None, None))
    assert caught.value.argument == "model"


def test_a_folder_below_the_home(tmp_path, checkpoints, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    copy_of(checkpoints["tiny-reader"], tmp_path / "models" / "mine")
    source = find("~/models/mine")
    assert (source.name, source.commit) == ("mine", None)
    assert load(source, place("cpu", None, None)).fingerprint == local_fingerprint("~/models/mine")


def copy_of(folder, to):
    shutil.copytree(folder, to)
    return to


def test_a_hub_download_and_a_local_copy_have_one_fingerprint(checkpoints, hub_cache):
    commit = hub_cache("org/reader", checkpoints["tiny-reader"])
    source = find("org/reader")
    assert (source.name, source.commit) == ("org/reader", commit)
    loaded = load(source, place("cpu", None, None))
    assert loaded.fingerprint == local_fingerprint(checkpoints["tiny-reader"])


def test_weights_that_are_no_files_on_disk_have_no_fingerprint(checkpoints, hub_cache):
    hub_cache("org/reader", checkpoints["tiny-reader"])
    loaded = load(find("org/reader"), place("cpu", None, None))
    (loaded.source.folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="holds no weights"):
        _ = loaded.fingerprint


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Put a checkpoint into a cache of the Hub as a download leaves it; without network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(name, folder, commit="a" * 40):
        root = tmp_path / "hub" / ("models--" + name.replace("/", "--"))
        snapshot = root / "snapshots" / commit
        for made in (root / "blobs", root / "refs", snapshot):
            made.mkdir(parents=True)
        (root / "refs" / "main").write_text(commit)
        for path in Path(folder).iterdir():
            content = path.read_bytes()
            # git's own digest for small files, SHA-256 for large ones
            large = path.suffix == ".safetensors"
            blob = (hashlib.sha256 if large else hashlib.sha1)(content).hexdigest()
            (root / "blobs" / blob).write_bytes(content)
            (snapshot / path.name).symlink_to(f"../../blobs/{blob}")
        return commit

    return put
