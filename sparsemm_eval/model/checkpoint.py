"""Loading a checkpoint, and the fingerprint that says which weights an answer came from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from sparsemm_eval import compat
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.model import shipped
from sparsemm_eval.model.families.base import Family
from sparsemm_eval.model.families.registry import family_of
from sparsemm_eval.model.placement import Placement
from sparsemm_eval.model_wrappers.arguments import Arguments

#: Files up to this many bytes enter the fingerprint whole; of larger ones both ends, size and time of change.
_WHOLE = 64 * 2**20
_END = 2**20


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with its processor.

    Attributes
    ----------
    name : str
        As the user gave it.
    fingerprint : str
        ``hub:<commit>`` or ``sha256:<digest of the folder's files>``.
    model, processor
        Transformers objects; the model in eval mode, the tokenizer padding on the left.
    pixel_limits : dict
        ``min_pixels`` and ``max_pixels`` in force, for families that have them.
    """

    name: str
    fingerprint: str
    model: Any
    processor: Any
    pixel_limits: dict[str, int]
    family: Family


def load(arguments: Arguments, family: Family | None, placement: Placement) -> Checkpoint:
    """Load model and processor.

    Raises
    ------
    ConfigError
        If the checkpoint cannot be found, is of another family, or does not take the arguments.
    """
    folder = _folder(arguments.pretrained)
    source = {"pretrained_model_name_or_path": str(folder or arguments.pretrained)}
    if folder is None:
        source["revision"] = arguments.revision
    config = _read_config(source, arguments)
    family = family or family_of(config)
    arguments.check_family(family)
    if config.model_type not in family.model_types:
        raise ConfigError(
            "pretrained",
            arguments.pretrained,
            f"a {family.title} checkpoint (model_type {' or '.join(family.model_types)}), "
            f"not one of model_type {config.model_type}",
        )
    limits = _pixel_limits(arguments, family)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            **source,
            dtype=placement.dtype,
            device_map=placement.device_map,
            attn_implementation=arguments.attn_implementation,
        ).eval()
        size = (
            {"shortest_edge": limits["min_pixels"], "longest_edge": limits["max_pixels"]} if limits else None
        )
        processor = AutoProcessor.from_pretrained(**source, **({"size": size} if size else {}))
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            "pretrained", arguments.pretrained, f"a complete checkpoint, which it is not: {error}"
        ) from error
    if placement.device_map is None:
        model.to(placement.device)
    processor.tokenizer.padding_side = "left"
    commit = compat.hub_commit(arguments.pretrained, arguments.revision) if folder is None else None
    fingerprint = f"hub:{commit}" if commit else f"sha256:{_digest(folder, model)}"
    return Checkpoint(arguments.pretrained, fingerprint, model, processor, limits, family)


def local_fingerprint(pretrained: str) -> str | None:
    """The fingerprint of a checkpoint on this machine's disk; None for what only the Hub can have.

    Raises
    ------
    ConfigError
        If a shipped reader is missing from this installation.
    """
    folder = _folder(pretrained)
    return None if folder is None else f"sha256:{_folder_digest(folder)}"


def _folder(pretrained: str) -> Path | None:
    """Local folder of a checkpoint; None for what only the Hub can have."""
    try:
        folder = shipped.resolve(pretrained)
    except FileNotFoundError as error:
        raise ConfigError("pretrained", pretrained, f"an installed reader: {error}") from error
    if folder is None and Path(pretrained).is_dir():
        folder = Path(pretrained)
    return folder


def _read_config(source: dict[str, Any], arguments: Arguments) -> Any:
    try:
        return AutoConfig.from_pretrained(**source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise ConfigError(
            "pretrained",
            arguments.pretrained,
            f"a folder with a checkpoint, a shipped reader ({', '.join(shipped.NAMES)}) or a Hub id that can "
            f"be reached (revision {arguments.revision!r}): {reason[0] if reason else type(error).__name__}",
        ) from error


def _pixel_limits(arguments: Arguments, family: Family) -> dict[str, int]:
    given = {name: getattr(arguments, name) for name in family.pixel_limits}
    limits = {
        name: value if value is not None else family.pixel_limits[name] for name, value in given.items()
    }
    if limits and limits["min_pixels"] > limits["max_pixels"]:
        raise ConfigError("min_pixels", limits["min_pixels"], f"at most max_pixels ({limits['max_pixels']})")
    return limits


def _digest(folder: Path | None, model: Any) -> str:
    digest = hashlib.sha256()
    if folder is None:
        # A Hub checkpoint without commit comes from a cache that does not keep it: the weights must do.
        for name, tensor in model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().float().sum().cpu().numpy().tobytes())
        return digest.hexdigest()
    return _folder_digest(folder)


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        status = path.stat()
        digest.update(json.dumps([path.name, status.st_size]).encode())
        with path.open("rb") as file:
            if status.st_size <= _WHOLE:
                digest.update(file.read())
                continue
            digest.update(str(status.st_mtime_ns).encode())
            digest.update(file.read(_END))
            file.seek(-_END, 2)
            digest.update(file.read(_END))
    return digest.hexdigest()
