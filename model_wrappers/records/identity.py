"""Run identity: everything besides the sample that an answer depends on."""

from __future__ import annotations

import hashlib
import json
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers

import sparsemm_eval
from sparsemm_eval import CompressionConfig
from sparsemm_eval.files import source_digest
from sparsemm_eval.kernels import dispatch
from sparsemm_eval.model.checkpoint import Checkpoint
from sparsemm_eval.model_wrappers.arguments import Arguments
from sparsemm_eval.model_wrappers.heads import Heads


def versions() -> dict[str, str]:
    """Versions of this package and of what it computes with."""
    return {
        "sparsemm_eval": sparsemm_eval.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "lmms_eval": metadata.version("lmms-eval"),
    }


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


def digest(identity: dict[str, Any]) -> str:
    """Hex SHA-256 of a JSON record; equal records have equal digests."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def describe(
    model_name: str,
    chat: bool,
    arguments: Arguments,
    compression: CompressionConfig,
    heads: Heads,
    loaded: Checkpoint,
    device: torch.device,
) -> dict[str, Any]:
    """The identity of a run, JSON types.

    Batch size and number of processes are left out: answers do not depend on them.
    """
    return {
        "model_name": model_name,
        "protocol": "chat" if chat else "simple",
        "pretrained": arguments.pretrained,
        "revision": arguments.revision,
        "checkpoint": loaded.fingerprint,
        "compression": compression.to_dict(),
        "compression_digest": compression.digest(),
        "head_scores": None if heads.scores is None else heads.scores.digest(),
        "masked_heads": [list(head) for head in heads.masked],
        "mask_mode": arguments.mask_mode if heads.masked else None,
        "system_prompt": arguments.system_prompt,
        "pixel_limits": loaded.pixel_limits,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device_type": device.type,
        "attn_implementation": arguments.attn_implementation,
        "decode": arguments.decode,
        "kernel": dispatch.choose(arguments.kernel, device),
        "versions": versions(),
        "source": source_digest(),
    }
