"""Real lmms-eval processes for tests: their environment, and a reader for them to load."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sparsemm_eval.model import shipped as checkpoints
from sparsemm_eval.pages.readers.reader import save
from sparsemm_eval.pages.readers.registry import build

PLUGINS = Path(__file__).parent / "plugins"


def environment(folder: Path) -> dict[str, str]:
    """Additions to the environment: no hub, caches in the test's folder, one thread, the oracle at hand."""
    paths = [str(PLUGINS), os.environ.get("PYTHONPATH", "")]
    return {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "LMMS_EVAL_PLUGINS": "oracle",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


def run(line: Sequence[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder to its end, with additions to the environment; its output is kept."""
    return subprocess.run(
        line,
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def is_shipped(reader: str) -> bool:
    """Whether a trained reader is part of this installation."""
    return (checkpoints.ROOT / reader / "model.safetensors").is_file()


def checkpoint(reader: str, folder: Path) -> str:
    """What to pass as ``pretrained``: the shipped reader, or a random one of its shape."""
    if is_shipped(reader):
        return reader
    target = folder / reader
    if not target.is_dir():
        save(*build(reader, seed=0), target)
    return str(target)


#: Environment variables with values that must not be written down.
SECRETS = {
    "HF_TOKEN": "hf_" + "Aa1" * 12,
    "HUGGING_FACE_HUB_TOKEN": "hf_" + "Bb2" * 12,
    "OPENAI_API_KEY": "sk-" + "Cc3" * 16,
    "WANDB_API_KEY": "d4" * 20,
    "GITHUB_TOKEN": "ghp_" + "Ee5" * 12,
}


def files_with_secrets(folder: Path, output: str) -> list[str]:
    """Names of files below a folder, and "output", that hold a value of ``SECRETS``."""
    values = [value.encode() for value in SECRETS.values()]
    found = [path for path in folder.rglob("*") if path.is_file()]
    names = [str(path) for path in found if any(value in path.read_bytes() for value in values)]
    return names + ["output"] * any(value in output for value in SECRETS.values())
