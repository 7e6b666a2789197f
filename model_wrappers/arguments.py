"""The model_args of every wrapper: names, types, defaults and ranges, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsemm_eval import CompressionConfig
from sparsemm_eval.decode.modes import MODES
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.kernels.dispatch import KERNELS
from sparsemm_eval.model.families.family import Family
from sparsemm_eval.model_wrappers.methods import Method

#: Knobs of CompressionConfig that are model_args; the method is fixed by the model's name.
KNOBS = tuple(entry.name for entry in dataclasses.fields(CompressionConfig) if entry.name != "method")
_MASK_ARGUMENTS = ("mask_ratio", "mask_mode", "mask_seed")
_PIXEL_ARGUMENTS = ("min_pixels", "max_pixels")
_DTYPES = {
    "auto": "auto",
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
}


@dataclass(frozen=True)
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
    mask_ratio : float
        Share of all query heads that is masked, in (0, 1).
    mask_mode : str
        ``query`` (uniform attention) or ``output`` (zeroed output).
    mask_seed : int
        Draw of the random heads.
    knobs : mapping
        The given knobs of CompressionConfig.
    """

    pretrained: str
    revision: str = "main"
    device: str = "auto"
    device_map: str | None = None
    dtype: str | None = None
    batch_size: int = 1
    attn_implementation: str = "sdpa"
    decode: str = "eager"
    kernel: str = "auto"
    min_pixels: int | None = None
    max_pixels: int | None = None
    system_prompt: str | None = None
    on_error: str = "raise"
    max_skipped: float = 0.05
    journal: str = "auto"
    stats_dir: str | None = None
    reference: str | None = None
    mask_ratio: float = 0.05
    mask_mode: str = "query"
    mask_seed: int = 0
    knobs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Every valid argument name."""
        own = (entry.name for entry in dataclasses.fields(cls) if entry.name != "knobs")
        return (*own, *KNOBS)

    @classmethod
    def parse(cls, given: Mapping[str, Any], model_name: str, method: Method, family: Family) -> Arguments:
        """Check raw model_args.

        Parameters
        ----------
        given : mapping
            As lmms-eval parsed them; ``None``, ``"None"``, ``"null"`` and ``""`` mean "not given".
        model_name : str
            For messages.
        method, family
            What the model name stands for.

        Raises
        ------
        ConfigError
            For an unknown name, a wrong type or a value out of range.
        """
        _refuse_unknown(given, model_name)
        values = {name: value for name, value in given.items() if not _is_none(value)}
        values.pop("max_batch_size", None)
        for name in _MASK_ARGUMENTS:
            if name in values and method.masked is None:
                raise ConfigError(name, values[name], f"no value: {model_name} masks no heads")
        for name in _PIXEL_ARGUMENTS:
            if name in values and not family.pixel_limits:
                raise ConfigError(name, values[name], f"no value: {family.title} has fixed image sizes")
        checked = {name: check(name, values[name]) for name, check in _CHECKS.items() if name in values}
        checked.setdefault("pretrained", family.default_checkpoint)
        if checked.get("decode", "eager") != "eager" and "device_map" in checked:
            raise ConfigError(
                "decode",
                checked["decode"],
                f"eager beside device_map={checked['device_map']}: one step, one device",
            )
        knobs = {name: _number(values[name]) for name in KNOBS if name in values}
        return cls(**checked, knobs=knobs)

    def compression(self, method: Method) -> CompressionConfig:
        """The compression these arguments describe; head scores stay as they were given."""
        return CompressionConfig(method=method.compression, **self.knobs)


def _refuse_unknown(given: Mapping[str, Any], model_name: str) -> None:
    if not _is_none(given.get("method")):
        raise ConfigError("method", given["method"], f"no value: the model name {model_name!r} fixes it")
    if not _is_none(given.get("max_batch_size")):
        raise ConfigError("max_batch_size", given["max_batch_size"], "no value: give batch_size a number")
    valid = Arguments.names()
    for name in given:
        if name in valid or name in ("method", "max_batch_size"):
            continue
        near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(name, given[name], f"one of the model_args {', '.join(sorted(valid))}{hint}")


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in ("", "none", "null"))


def _number(value: Any) -> Any:
    """Numbers that arrive as text or as ``-5.0``, since lmms-eval parses ``-5`` to a float."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        raise ConfigError(name, value, "text")
    return str(value)


def _on_off(name: str, value: Any) -> str:
    # lmms-eval turns journal=true and journal=false into booleans
    return {True: "auto", False: "off"}[value] if isinstance(value, bool) else str(value)


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ConfigError(name, value, "one of " + ", ".join(choices))
    return value


def _dtype(name: str, value: Any) -> str:
    key = str(value).removeprefix("torch.")
    if key not in _DTYPES:
        raise ConfigError(name, value, "one of " + ", ".join(_DTYPES))
    return _DTYPES[key]


def _integer(name: str, value: Any, minimum: int) -> int:
    number = _number(value)
    if isinstance(number, bool) or not isinstance(number, int) or number < minimum:
        raise ConfigError(name, value, f"an integer >= {minimum}")
    return number


def _share(name: str, value: Any, *, open_ends: bool = False) -> float:
    number = _number(value)
    valid = isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
    if not valid or not 0 <= number <= 1 or (open_ends and number in (0, 1)):
        raise ConfigError(name, value, "a number in (0, 1)" if open_ends else "a number in [0, 1]")
    return float(number)


_CHECKS = {
    "pretrained": _text,
    "revision": _text,
    "device": _text,
    "device_map": _text,
    "dtype": _dtype,
    "batch_size": lambda name, value: _integer(name, value, 1),
    "attn_implementation": lambda name, value: _choice(name, value, ("sdpa",)),
    "decode": lambda name, value: _choice(name, value, MODES),
    "kernel": lambda name, value: _choice(name, value, KERNELS),
    "min_pixels": lambda name, value: _integer(name, value, 1),
    "max_pixels": lambda name, value: _integer(name, value, 1),
    "system_prompt": lambda name, value: str(value),
    "on_error": lambda name, value: _choice(name, value, ("raise", "skip")),
    "max_skipped": _share,
    "journal": _on_off,
    "stats_dir": _text,
    "reference": _text,
    "mask_ratio": lambda name, value: _share(name, value, open_ends=True),
    "mask_mode": lambda name, value: _choice(name, value, ("query", "output")),
    "mask_seed": lambda name, value: _integer(name, value, 0),
}
