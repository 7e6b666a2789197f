"""The model_args of every wrapper: names, types, defaults and ranges, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from sparsemm_eval.checks import Count, Share, one_of, record
from sparsemm_eval.config import CompressionConfig, setting_names
from sparsemm_eval.decode.modes import MODES
from sparsemm_eval.errors import ConfigError, nearest
from sparsemm_eval.kernels.dispatch import KERNELS
from sparsemm_eval.methods.base import Method
from sparsemm_eval.model.families.base import Family

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}


def _text(value: Any) -> Any:
    """lmms-eval parses digits to numbers, so a revision may arrive as one."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _number(value: Any) -> Any:
    """Numbers that arrive as text, or as ``-5.0``, since lmms-eval parses ``-5`` to a float."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _on_off(value: Any) -> Any:
    """lmms-eval turns ``journal=true`` and ``journal=false`` into booleans."""
    return {True: "auto", False: "off"}[value] if isinstance(value, bool) else _text(value)


def _dtype(value: Any) -> Any:
    name = str(value).removeprefix("torch.")
    return _DTYPES.get(name, name)


Text = Annotated[str, BeforeValidator(_text)]
Place = Annotated[Text, AfterValidator(os.path.expanduser)]
WholeNumber = Annotated[Count, BeforeValidator(_number)]


@record
class Arguments:
    """Checked model_args.

    Attributes
    ----------
    pretrained : str
        Hub id, folder, or the name of a shipped reader (``tiny-reader``).
    revision : str
        Branch, tag or commit of a Hub checkpoint.
    device : str
        ``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:N`` …
    device_map : str or None
        ``auto``, ``balanced``, ``sequential``: spread one model over several devices.
    dtype : str or None
        ``auto`` (the checkpoint's), ``float32``, ``bfloat16``, ``float16``; None: float32 on the CPU, else
        ``auto``.
    batch_size : int
        Samples per ``generate`` call.
    attn_implementation : str
        ``sdpa``, which all methods are compared on.
    decode : str
        ``eager`` (transformers' own loop), ``compile`` (the same, its step compiled on a GPU), ``graph`` (an
        own loop, its step captured in a CUDA graph) or ``fused`` (as graph, the step compiled first).
    kernel : str
        Decode attention over ragged entries: ``auto`` (Triton on CUDA, else torch), ``torch`` or ``triton``.
    min_pixels, max_pixels : int or None
        Image size limits of families that have them (Qwen2-VL).
    system_prompt : str or None
        Text, or the path of a file with it; None: the family's default.
    on_error : str
        ``raise``: a failing sample stops the run. ``skip``: it is left out of the metrics, counted and named.
    max_skipped : float
        With ``on_error=skip``: the run fails when a larger share of the samples was skipped.
    journal : str
        ``auto`` (in the user's cache folder), ``off``, or a folder.
    stats_dir : str or None
        Folder for the run record and the per-sample measurements.
    reference : str or None
        Folder of a FullKV journal to compare the answers with.
    foreign_head_scores : bool
        Whether head scores may be of other weights than the model's, for experiments across models.
    knobs : dict
        The given settings of CompressionConfig.
    """

    pretrained: Place
    revision: Text = "main"
    device: Text = "auto"
    device_map: Text | None = None
    dtype: Annotated[one_of("auto", "float32", "bfloat16", "float16"), BeforeValidator(_dtype)] | None = None
    batch_size: WholeNumber = 1
    attn_implementation: one_of("sdpa") = "sdpa"
    decode: one_of(*MODES) = "eager"
    kernel: one_of(*KERNELS) = "auto"
    min_pixels: WholeNumber | None = None
    max_pixels: WholeNumber | None = None
    system_prompt: Place | None = None
    on_error: one_of("raise", "skip") = "raise"
    max_skipped: Annotated[Share, BeforeValidator(_number)] = 0.05
    journal: Annotated[Place, BeforeValidator(_on_off)] = "auto"
    stats_dir: Place | None = None
    reference: Place | None = None
    foreign_head_scores: bool = False
    knobs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Every valid argument name."""
        own = (entry.name for entry in dataclasses.fields(cls) if entry.name != "knobs")
        return (*own, *setting_names())

    @classmethod
    def parse(cls, given: Mapping[str, Any], model_name: str, family: Family | None) -> Arguments:
        """Check raw model_args.

        Parameters
        ----------
        given : mapping
            As lmms-eval parsed them; ``None``, ``"None"``, ``"null"`` and ``""`` mean "not given".
        model_name : str
            For messages.
        family : Family or None
            What the model name stands for; None: the checkpoint decides.

        Raises
        ------
        ConfigError
            For an unknown name, a wrong type or a value out of range.
        """
        _refuse_unknown(given, model_name, cls.names())
        values = {name: value for name, value in given.items() if not _is_none(value)}
        values.pop("max_batch_size", None)
        if family is not None:
            values.setdefault("pretrained", family.default_checkpoint)
        elif "pretrained" not in values:
            raise ConfigError("pretrained", None, f"a checkpoint, from which {model_name} takes its family")
        knobs = {name: _number(values.pop(name)) for name in setting_names() if name in values}
        arguments = cls(**values, knobs=knobs)
        if family is not None:
            arguments.check_family(family)
        if arguments.decode != "eager" and arguments.device_map is not None:
            remedy = f"eager beside device_map={arguments.device_map}: one step, one device"
            raise ConfigError("decode", arguments.decode, remedy)
        return arguments

    def check_family(self, family: Family) -> None:
        """Refuse what the model family has no use for.

        Raises
        ------
        ConfigError
            For pixel limits of a family with fixed image sizes.
        """
        for name in ("min_pixels", "max_pixels"):
            value = getattr(self, name)
            if value is not None and not family.pixel_limits:
                raise ConfigError(name, value, f"no value: {family.title} has fixed image sizes")

    def compression(self, method: Method) -> CompressionConfig:
        """The compression these arguments describe; head scores stay as they were given."""
        return CompressionConfig(method.name, **self.knobs)


def _refuse_unknown(given: Mapping[str, Any], model_name: str, valid: tuple[str, ...]) -> None:
    if not _is_none(given.get("method")):
        raise ConfigError("method", given["method"], f"no value: the model name {model_name!r} fixes it")
    if not _is_none(given.get("max_batch_size")):
        raise ConfigError("max_batch_size", given["max_batch_size"], "no value: give batch_size a number")
    for name in given:
        if name not in (*valid, "method", "max_batch_size"):
            remedy = f"one of the model_args {', '.join(sorted(valid))}{nearest(name, valid)}"
            raise ConfigError(name, given[name], remedy)


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in ("", "none", "null"))
