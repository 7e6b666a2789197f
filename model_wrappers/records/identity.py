"""Run identity: everything besides the sample that an answer depends on."""

from __future__ import annotations

import hashlib
import inspect
import marshal
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers

import sparsemm_eval
from sparsemm_eval.config import CompressionConfig
from sparsemm_eval.files import source_digest
from sparsemm_eval.kernels import dispatch
from sparsemm_eval.model.checkpoint import Checkpoint
from sparsemm_eval.model_wrappers.arguments import Arguments


def versions() -> dict[str, str]:
    """Versions of this package and of what it computes with."""
    return {
        "sparsemm_eval": sparsemm_eval.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "lmms_eval": metadata.version("lmms-eval"),
    }


def plugin_digest(compression: CompressionConfig) -> str | None:
    """Hex SHA-256 of the modules outside this package that decide what is kept; None where there are none."""
    rule, score = compression.rule, compression.score_in_use
    functions = (score and score.function, rule.allocate, rule.protect, rule.mask)
    content = hashlib.sha256()
    outside = [one for one in functions if one and not one.__module__.startswith("sparsemm_eval.")]
    for function in outside:
        try:
            content.update(inspect.getsource(inspect.getmodule(function)).encode())
        except (OSError, TypeError):  # typed in, so there is no file
            content.update(marshal.dumps(function.__code__))
    return content.hexdigest() if outside else None


def commit() -> str | None:
    """Commit of the source this package runs from, with ``+changes`` where files differ; None outside git."""
    root = Path(sparsemm_eval.__file__).resolve().parent

    def git(*arguments: str) -> str:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
        return result.stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository.
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--untracked-files=no", ".")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def names_of(
    arguments: Arguments, compression: CompressionConfig, loaded: Checkpoint
) -> dict[str, str | None]:
    """What people call the head scores, and the model they were made for; answers do not depend on names."""
    scores, given = compression.head_scores, arguments.knobs.get("head_scores")
    if scores is None:
        return {"head_scores_name": None, "head_scores_model": None}
    name = loaded.name if given is None else Path(str(given)).name
    return {"head_scores_name": name, "head_scores_model": scores.provenance.get("model")}


def describe(
    model_name: str,
    family: str,
    chat: bool,
    arguments: Arguments,
    compression: CompressionConfig,
    loaded: Checkpoint,
    device: torch.device,
) -> dict[str, Any]:
    """The identity of a run, JSON types.

    Batch size and number of processes are left out: answers do not depend on them.
    """
    mask, scores = compression.rule.mask, compression.head_scores
    masked = [] if mask is None else mask(compression.head_scores, compression)
    return {
        "model_name": model_name,
        "family": family,
        "protocol": "chat" if chat else "simple",
        "pretrained": arguments.pretrained,
        "revision": arguments.revision,
        "checkpoint": loaded.fingerprint,
        "compression": compression.to_dict(),
        "compression_digest": compression.digest(),
        "head_scores": None if scores is None else scores.digest(),
        "masked_heads": [list(head) for head in masked],
        "system_prompt": arguments.system_prompt,
        "pixel_limits": loaded.pixel_limits,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device_type": device.type,
        "attn_implementation": arguments.attn_implementation,
        "decode": arguments.decode,
        "kernel": dispatch.choose(arguments.kernel, device),
        "versions": versions(),
        "source": source_digest(),
        "plugin_source": plugin_digest(compression),
    }
