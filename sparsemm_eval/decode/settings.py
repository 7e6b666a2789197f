"""What a ``generate`` call may ask of a compressed cache, and of the own loop; everything else is refused."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from sparsemm_eval import compat
from sparsemm_eval.decode.choice import Choice, RowSampling
from sparsemm_eval.errors import UnsupportedError

DEFAULT_NEW_TOKENS = 20  # generate's, where nothing says how many
_TAKES_BACK = "takes tokens back, which needs evicted entries"
REFUSED_ARGUMENTS = {
    "assistant_model": f"assisted decoding {_TAKES_BACK}: leave it out",
    "assistant_tokenizer": f"assisted decoding {_TAKES_BACK}: leave it out",
    "past_key_values": "the session makes the cache itself, one per call: leave it out",
}
REFUSED_SETTINGS = {
    "prompt_lookup_num_tokens": f"prompt-lookup decoding {_TAKES_BACK}",
    "assistant_early_exit": f"assisted decoding {_TAKES_BACK}",
    "use_mtp": f"multi-token prediction {_TAKES_BACK}",
    "prefill_chunk_size": "the observation window is at the prompt's end: give the whole prompt at once",
    "cache_implementation": "the session makes the cache itself",
    "penalty_alpha": "contrastive search copies the cache per candidate: use greedy decoding or sampling",
    "dola_layers": "DoLa is not tested with a compressed cache: use greedy decoding or sampling",
    "output_attentions": "attention over a compressed cache gives no weights",
}
_LOOP_REFUSES = (
    "inputs_embeds",
    "prefix_allowed_tokens_fn",
    "streamer",
    "synced_gpus",
    "custom_generate",
    "negative_prompt_ids",
)
# Of the settings, those that the loop follows, and those that change no token of a greedy or sampled answer.
# Any other one is refused unless it has its default, so that a setting of a later release is not overlooked.
_LOOP_FOLLOWS = {
    "do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens", "max_length",
    "eos_token_id", "pad_token_id",
}  # fmt: skip
_WITHOUT_EFFECT = {
    "bos_token_id", "decoder_start_token_id", "use_cache", "max_cache_len", "compile_config",
    "disable_compile", "early_stopping", "length_penalty", "transformers_version", "_from_model_config",
}  # fmt: skip
_NAMES = frozenset(vars(GenerationConfig()))


@dataclass(frozen=True)
class LoopSettings:
    """One call's settings.

    Attributes
    ----------
    choice : Choice
    max_new_tokens : int
        At least 1.
    ends : tuple of int
        End tokens; empty: only the length ends an answer.
    pad : int or None
        Fills rows that ended before others.
    seeds : torch.Tensor or None
        int64 [B], where rows are drawn from seeds of their own.
    """

    choice: Choice
    max_new_tokens: int
    ends: tuple[int, ...]
    pad: int | None
    seeds: torch.Tensor | None = None


def setting(name: str, config: GenerationConfig, arguments: dict[str, Any]) -> Any:
    """A generation setting: the call's own argument, else what the generation config says."""
    return arguments[name] if name in arguments else getattr(config, name, None)


def refuse_several(who: str, config: GenerationConfig, arguments: dict[str, Any]) -> None:
    """Refuse several answers to a prompt for what prepares every prompt once."""
    sequences = setting("num_return_sequences", config, arguments)
    if sequences is not None and sequences > 1:
        raise UnsupportedError(f"num_return_sequences={sequences}: {who} takes 1 only")


def attention_mask_of(config: GenerationConfig, arguments: dict[str, Any]) -> torch.Tensor:
    """The attention mask [B, N] of a call; where it gives none, what ``generate`` takes from pad tokens."""
    mask, ids = arguments.get("attention_mask"), arguments.get("input_ids", arguments.get("inputs"))
    if mask is not None:
        return mask
    pad, ends = (setting(name, config, arguments) for name in ("pad_token_id", "eos_token_id"))
    ends = ends if isinstance(ends, (list, tuple)) else [ends]
    padded = pad is not None and pad not in ends and bool((ids == pad).any())
    return (ids != pad).long() if padded else torch.ones_like(ids)


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


def new_tokens(max_new_tokens: int | None, max_length: int | None, prompt_tokens: int | None) -> int | None:
    """Most tokens that a call generates; None where nothing says so."""
    if max_new_tokens is not None:
        return int(max_new_tokens)
    if max_length is None or prompt_tokens is None:
        return None
    return max(int(max_length) - prompt_tokens, 1)


def expected_tokens(config: GenerationConfig, arguments: dict[str, Any]) -> int | None:
    """Most tokens that a call of ``generate`` will generate; None where nothing says so."""
    prompt = arguments.get("input_ids", arguments.get("inputs"))
    limits = (setting(name, config, arguments) for name in ("max_new_tokens", "max_length"))
    return new_tokens(*limits, None if prompt is None else prompt.shape[1])


def generation_config(model: PreTrainedModel, arguments: dict[str, Any]) -> GenerationConfig:
    """All settings of a call as ``generate`` understands them.

    Parameters
    ----------
    model : PreTrainedModel
        Its generation config fills what the call leaves open.
    arguments : dict
        Keyword arguments of the call.

    Raises
    ------
    UnsupportedError
        Naming what the loop does not do.
    """
    instead = "is not supported with decode=graph or fused: use decode=eager"
    for name in _LOOP_REFUSES:
        if arguments.get(name):
            raise UnsupportedError(f"{name} {instead}")
    processors = arguments.get("logits_processor") or ()
    if len(processors) > 1 or not all(isinstance(one, RowSampling) for one in processors):
        raise UnsupportedError(f"logits_processor {instead}")
    given = {name: value for name, value in arguments.items() if name in _NAMES}
    config = compat.generation_config_of(model, copy.deepcopy(arguments.get("generation_config")), given)
    defaults = {"min_new_tokens": 0, "guidance_scale": 1, **compat.generation_defaults()}
    for name in sorted(_NAMES - _LOOP_FOLLOWS - _WITHOUT_EFFECT):
        value = getattr(config, name)
        if value is not None and value is not False and value != defaults.get(name):
            raise UnsupportedError(f"{name}={value!r} {instead}")
    return config


def loop_settings(config: GenerationConfig, arguments: dict[str, Any], prompt_tokens: int) -> LoopSettings:
    """What the loop needs of a call, for prompts of N tokens, padding included."""
    ends = config.eos_token_id
    ends = () if ends is None else tuple(ends) if isinstance(ends, (list, tuple)) else (int(ends),)
    pad = config.pad_token_id if config.pad_token_id is not None else (ends[0] if ends else None)
    count = new_tokens(config.max_new_tokens, config.max_length, prompt_tokens)
    choice, seeds = _choice(config), None
    for sampling in arguments.get("logits_processor") or ():
        choice = replace(sampling.choice, repetition_penalty=choice.repetition_penalty)
        seeds = sampling.seeds
    return LoopSettings(choice, DEFAULT_NEW_TOKENS if count is None else count, ends, pad, seeds)


def _choice(config: GenerationConfig) -> Choice:
    penalty = config.repetition_penalty
    penalty = 1.0 if penalty is None else float(penalty)
    if not config.do_sample:
        return Choice(repetition_penalty=penalty)
    return Choice(
        samples=True,
        temperature=1.0 if config.temperature is None else float(config.temperature),
        top_k=config.top_k or 0,
        top_p=1.0 if config.top_p is None else float(config.top_p),
        repetition_penalty=penalty,
    )


def for_first_token(config: GenerationConfig, arguments: dict[str, Any]) -> dict[str, Any]:
    """The same call, asked for one token only."""
    others = {k: v for k, v in arguments.items() if k not in _NAMES and k != "stopping_criteria"}
    config = copy.deepcopy(config)
    config.max_new_tokens, config.max_length = 1, None
    return {**others, "generation_config": config}
