"""What a ``generate`` call asks of the own loop; everything that the loop does not do is refused."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from sparsemm_eval import compat
from sparsemm_eval.decode.choice import Choice
from sparsemm_eval.errors import UnsupportedError

DEFAULT_NEW_TOKENS = 20  # generate's, where nothing says how many
REFUSED_ARGUMENTS = (
    "inputs_embeds",
    "logits_processor",
    "prefix_allowed_tokens_fn",
    "streamer",
    "synced_gpus",
    "custom_generate",
    "negative_prompt_ids",
)
# settings that would change an answer or what is returned, and the values at which they do nothing
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_return_sequences": (None, 1),
    "return_dict_in_generate": (None, False),
    "output_scores": (None, False),
    "output_logits": (None, False),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "sequence_bias": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1, 1.0),
    "watermarking_config": (None,),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "min_p": (None,),
    "top_h": (None,),
    "max_time": (None,),
    "stop_strings": (None,),
    "token_healing": (None, False),
    "renormalize_logits": (None, False),
    "remove_invalid_values": (None, False),
    "encoder_repetition_penalty": (None, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
}


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
    """

    choice: Choice
    max_new_tokens: int
    ends: tuple[int, ...]
    pad: int | None


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
    for name in REFUSED_ARGUMENTS:
        if arguments.get(name):
            raise UnsupportedError(f"{name} is not supported with decode=graph or fused: use decode=eager")
    given = {name: value for name, value in arguments.items() if name in _NAMES}
    config = compat.generation_config_of(model, copy.deepcopy(arguments.get("generation_config")), given)
    for name, neutral in NEUTRAL.items():
        value = getattr(config, name, None)
        if value not in neutral:
            raise UnsupportedError(
                f"{name}={value!r} is not supported with decode=graph or fused: use decode=eager"
            )
    return config


def loop_settings(config: GenerationConfig, prompt_tokens: int) -> LoopSettings:
    """What the loop needs of them, for prompts of N tokens, padding included."""
    ends = config.eos_token_id
    ends = () if ends is None else tuple(ends) if isinstance(ends, (list, tuple)) else (int(ends),)
    pad = config.pad_token_id if config.pad_token_id is not None else (ends[0] if ends else None)
    return LoopSettings(_choice(config), _new_tokens(config, prompt_tokens), ends, pad)


_NAMES = frozenset(GenerationConfig().to_dict())


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


def _new_tokens(config: GenerationConfig, prompt_tokens: int) -> int:
    if config.max_new_tokens is not None:
        return int(config.max_new_tokens)
    if config.max_length is None:
        return DEFAULT_NEW_TOKENS
    return max(int(config.max_length) - prompt_tokens, 1)


def for_first_token(config: GenerationConfig, arguments: dict[str, Any]) -> dict[str, Any]:
    """The same call, asked for one token only."""
    others = {k: v for k, v in arguments.items() if k not in _NAMES and k != "stopping_criteria"}
    config = copy.deepcopy(config)
    config.max_new_tokens, config.max_length = 1, None
    return {**others, "generation_config": config}
