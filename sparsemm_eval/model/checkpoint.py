"""Finding and loading a checkpoint, whoever asks: wrappers, head scoring, figures, evidence, benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig

from sparsemm_eval.errors import ConfigError, reason_of
from sparsemm_eval.model import shipped
from sparsemm_eval.model.families.base import Family
from sparsemm_eval.model.fingerprint import fingerprint, local_folder
from sparsemm_eval.model.placement import Placement


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint that was found; of its files only the config has been read.

    Attributes
    ----------
    argument, given : str
        What the user calls it and wrote, for messages.
    name : str
        Shipped name, hub id, or the name of the folder: never a path.
    folder : pathlib.Path
        Where its files are; of a hub checkpoint the snapshot, which need not hold all of them yet.
    commit : str or None
        Of a hub checkpoint.
    config : PreTrainedConfig
    """

    argument: str
    given: str
    name: str
    folder: Path
    commit: str | None
    config: PreTrainedConfig

    @property
    def heads(self) -> tuple[int, int]:
        """Layers, and query heads in each."""
        text = self.config.get_text_config()
        return text.num_hidden_layers, text.num_attention_heads

    @property
    def location(self) -> dict[str, str]:
        """The arguments by which transformers' ``from_pretrained`` finds it."""
        if self.commit is None:
            return {"pretrained_model_name_or_path": str(self.folder)}
        return {"pretrained_model_name_or_path": self.name, "revision": self.commit}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with its processor.

    Attributes
    ----------
    source : FoundCheckpoint
    model, processor
        Transformers objects; the model in eval mode, the tokenizer padding on the left.
    pixel_limits : mapping
        ``min_pixels`` and ``max_pixels`` in force, for families that have them.
    """

    source: FoundCheckpoint
    model: Any
    processor: Any
    pixel_limits: Mapping[str, int]

    @property
    def name(self) -> str:
        """Shipped name, hub id, or the name of the folder: never a path."""
        return self.source.name

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """``weights`` and ``files``, see ``model.fingerprint``.

        Raises
        ------
        ConfigError
            If the weights do not lie on disk as files.
        """
        return fingerprint(self.source.folder, self.source.argument, self.source.given)


def find(given: str, revision: str | None = None, argument: str = "pretrained") -> FoundCheckpoint:
    """Find a checkpoint and read its config.

    Parameters
    ----------
    given : str
        Name of a shipped reader, folder, or hub id.
    revision : str, optional
        Branch, tag or commit of a hub checkpoint; None: its main branch.
    argument : str
        What the user calls it, for messages.

    Raises
    ------
    ConfigError
        If there is no such checkpoint.
    """
    folder = local_folder(given, argument)
    try:
        if folder is not None:
            config = AutoConfig.from_pretrained(folder)
            name = given if given in (*shipped.NAMES, *shipped.BUILT) else folder.resolve().name
            return FoundCheckpoint(argument, given, name, folder, None, config)
        config = AutoConfig.from_pretrained(given, revision=revision or "main")
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            argument,
            given,
            f"a folder with a checkpoint, a shipped reader ({', '.join((*shipped.NAMES, *shipped.BUILT))}) "
            f"or a Hub id that can be reached (revision {revision!r}): {reason}",
        ) from error
    cached = try_to_load_from_cache(given, "config.json", revision=revision or "main")
    if not isinstance(cached, str):
        remedy = "a checkpoint that the Hub's cache keeps (HF_HUB_CACHE): its files name its weights"
        raise ConfigError(argument, given, remedy)
    snapshot = Path(cached).parent
    return FoundCheckpoint(argument, given, given, snapshot, snapshot.name, config)


def load(
    source: FoundCheckpoint,
    placement: Placement,
    family: Family | None = None,
    pixel_limits: Mapping[str, int | None] | None = None,
) -> Checkpoint:
    """Load model and processor.

    Parameters
    ----------
    source : FoundCheckpoint
    placement : Placement
    family : Family, optional
        That the checkpoint must be of.
    pixel_limits : mapping, optional
        Those the user gave; None for the family's own.

    Raises
    ------
    ConfigError
        If the checkpoint is of another family, is incomplete, or does not take the arguments.
    """
    limits: dict[str, int] = {}
    if family is not None:
        _check_family(source, family)
        limits = _pixel_limits(family, pixel_limits or {})
    options = {}
    if limits:
        options["size"] = {"shortest_edge": limits["min_pixels"], "longest_edge": limits["max_pixels"]}
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            **source.location,
            dtype=placement.dtype,
            device_map=placement.device_map,
            attn_implementation="sdpa",
        ).eval()
        processor = AutoProcessor.from_pretrained(**source.location, **options)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        remedy = f"a complete vision-language checkpoint, which it is not: {reason_of(error)}"
        raise ConfigError(source.argument, source.given, remedy) from error
    if placement.device_map is None:
        model.to(placement.device)
    processor.tokenizer.padding_side = "left"
    return Checkpoint(source, model, processor, limits)


def _check_family(source: FoundCheckpoint, family: Family) -> None:
    if source.config.model_type not in family.model_types:
        raise ConfigError(
            source.argument,
            source.given,
            f"a {family.title} checkpoint (model_type {' or '.join(family.model_types)}), "
            f"not one of model_type {source.config.model_type}",
        )


def _pixel_limits(family: Family, given: Mapping[str, int | None]) -> dict[str, int]:
    limits = {name: given.get(name) or default for name, default in family.pixel_limits.items()}
    if limits and limits["min_pixels"] > limits["max_pixels"]:
        raise ConfigError("min_pixels", limits["min_pixels"], f"at most max_pixels ({limits['max_pixels']})")
    return limits
