"""What ``generate`` may be asked to do with a compressed cache, and how much room it will need."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

from sparsemm_eval.errors import UnsupportedError

REFUSED_ARGUMENTS = {
    "assistant_model": "assisted decoding takes tokens back, which needs evicted entries: leave it out",
    "assistant_tokenizer": "assisted decoding takes tokens back, which needs evicted entries: leave it out",
    "past_key_values": "the session makes the cache itself, one per call: leave it out",
}
REFUSED_SETTINGS = {
    "prompt_lookup_num_tokens": "prompt-lookup decoding takes tokens back, which needs evicted entries",
    "assistant_early_exit": "assisted decoding takes tokens back, which needs evicted entries",
    "use_mtp": "multi-token prediction takes tokens back, which needs evicted entries",
    "prefill_chunk_size": "the observation window is at the prompt's end: give the whole prompt at once",
    "cache_implementation": "the session makes the cache itself",
    "penalty_alpha": "contrastive search copies the cache per candidate: use greedy decoding or sampling",
    "dola_layers": "DoLa is not tested with a compressed cache: use greedy decoding or sampling",
}


def setting(name: str, config: GenerationConfig, arguments: dict[str, Any]) -> Any:
    """A generation setting: the call's own argument, else what the generation config says."""
    return arguments[name] if name in arguments else getattr(config, name, None)


def check(config: GenerationConfig, arguments: dict[str, Any]) -> None:
    """Refuse what a compressed cache cannot do.

    Raises
    ------
    UnsupportedError
        Naming the argument and what to use instead.
    """
    beams = setting("num_beams", config, arguments)
    if beams is not None and beams > 1:
        raise UnsupportedError(f"num_beams={beams}: beam search is not supported, use num_beams=1")
    if setting("use_cache", config, arguments) is False:
        raise UnsupportedError("use_cache=False: without a cache there is nothing to compress")
    for name, reason in REFUSED_ARGUMENTS.items():
        if arguments.get(name) is not None:
            raise UnsupportedError(f"{name}: {reason}")
    for name, reason in REFUSED_SETTINGS.items():
        value = setting(name, config, arguments)
        if value:
            raise UnsupportedError(f"{name}={value!r}: {reason}")


def expected_tokens(config: GenerationConfig, arguments: dict[str, Any], default: int | None) -> int | None:
    """Tokens the call will generate at most; ``default`` where nothing says so."""
    new_tokens = setting("max_new_tokens", config, arguments)
    if new_tokens is not None:
        return int(new_tokens)
    length = setting("max_length", config, arguments)
    prompt = arguments.get("input_ids")
    if length is None or prompt is None:
        return default
    return max(int(length) - prompt.shape[1], 1)
