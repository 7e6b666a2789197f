"""The decode modes, and which models can run in them."""

from __future__ import annotations

from transformers import PreTrainedModel

from sparsemm_eval.errors import ConfigError, UnsupportedError

#: eager: ``generate`` as it is. compile: ``generate`` compiles the decode step (on a GPU). graph: an own
#: loop that captures the step in a CUDA graph (on a CPU it runs as it is). fused: the same, the step
#: compiled first.
MODES = ("eager", "compile", "graph", "fused")


def check(decode: str, model: PreTrainedModel) -> None:
    """Refuse what cannot run.

    Raises
    ------
    ConfigError
        For an unknown mode.
    UnsupportedError
        For a model that is spread over several devices, which no one graph can follow.
    """
    if decode not in MODES:
        raise ConfigError("decode", decode, "one of " + ", ".join(MODES))
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    if decode != "eager" and len(places) > 1:
        raise UnsupportedError(
            f"decode={decode!r} with a model on several devices ({', '.join(sorted(places))}): use "
            "decode=eager, or leave out device_map"
        )


def captures(decode: str) -> bool:
    """Whether the mode runs the own loop."""
    return decode in ("graph", "fused")
