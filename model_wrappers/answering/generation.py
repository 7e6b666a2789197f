"""Generation settings: a task's gen_kwargs, checked, with one meaning for every family."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from sparsemm_eval.checks import Count, Natural, NonNegative, Positive, PositiveShare, checked
from sparsemm_eval.decode.choice import Choice
from sparsemm_eval.errors import ConfigError

#: What tasks pass for other models; it changes nothing here, nor in upstream's wrappers of these families.
FOREIGN = frozenset({"image_aspect_ratio", "image_sizes", "use_cache", "modality", "max_frames", "fps"})


@dataclass(frozen=True)
class Defaults:
    """What gen_kwargs leave open, and which of them are the user's word."""

    max_new_tokens: int
    seed: int = 0  # of what is sampled
    of_user: frozenset[str] = frozenset()  # given with --gen_kwargs; others are the task's


@dataclass(frozen=True)
class GenerationSettings:
    """How an answer is generated; requests with equal settings share batches.

    Attributes
    ----------
    until : tuple of str
        The answer ends before the first of them.
    max_new_tokens : int
    temperature : float
        0: greedy.
    top_p : float
        1: off.
    top_k : int
        0: off.
    repetition_penalty : float
        1: off, whatever the checkpoint's generation_config says, so that all methods generate alike.
    seed : int or None
        Of what is drawn; None for greedy settings.
    """

    until: tuple[str, ...]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None

    @classmethod
    def parse(
        cls, gen_kwargs: Mapping[str, Any], defaults: Defaults
    ) -> tuple[GenerationSettings, tuple[str, ...]]:
        """Read gen_kwargs without changing them.

        Sampling needs a temperature above 0 (or ``do_sample=true`` alone, which means temperature 1) and no
        ``do_sample=false``. Where a task says one and the user the other, the user's word decides.

        Returns
        -------
        settings, unused
            ``unused`` are names of gen_kwargs that have no meaning here.

        Raises
        ------
        ConfigError
            For beam search, for values out of range, and for a user's words that contradict each other.
        """
        given = {name: value for name, value in gen_kwargs.items() if value is not None}
        beams = given.pop("num_beams", 1)
        if beams != 1:
            raise ConfigError("num_beams", beams, "1: a compressed cache cannot follow several beams")
        sequences = given.pop("num_return_sequences", 1)
        if sequences != 1:
            raise ConfigError("num_return_sequences", sequences, "1: use --repeats for several answers")
        settings = cls(
            until=_until(given.pop("until", None)),
            max_new_tokens=_taken(given, "max_new_tokens", Count, defaults.max_new_tokens),
            temperature=_temperature(given, defaults.of_user),
            top_p=_taken(given, "top_p", PositiveShare, 1.0),
            top_k=_taken(given, "top_k", Natural, 0),
            repetition_penalty=_taken(given, "repetition_penalty", Positive, 1.0),
            seed=defaults.seed,
        )
        if not settings.samples:
            # Without sampling these say nothing; equal settings must compare equal.
            settings = dataclasses.replace(settings, top_p=1.0, top_k=0, seed=None)
        return settings, tuple(sorted(set(given) - FOREIGN))

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random."""
        return self.temperature > 0

    @property
    def choice(self) -> Choice:
        """How a token is drawn, every row from a seed of its own."""
        return Choice(True, self.temperature, self.top_k, self.top_p, by_row=True)

    def canonical(self) -> str:
        """JSON with sorted keys; equal settings give equal text."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    def for_model(self, model: Any, tokenizer: Any) -> GenerationConfig:
        """The settings as a GenerationConfig with all of the model's end tokens.

        Every field that a checkpoint could bring is set, since generate() fills unset ones from there.
        Sampling is no part of it: see ``choice``.
        """
        own = model.generation_config
        end = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
        ends = list(end) if isinstance(end, (list, tuple)) else [end]
        pad = next(
            (token for token in (own.pad_token_id, tokenizer.pad_token_id) if token is not None), ends[0]
        )
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=0,
            num_beams=1,
            num_return_sequences=1,
            repetition_penalty=self.repetition_penalty,
            no_repeat_ngram_size=0,
            bos_token_id=own.bos_token_id if own.bos_token_id is not None else tokenizer.bos_token_id,
            eos_token_id=ends,
            pad_token_id=pad,
            do_sample=False,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
        )


def _temperature(given: dict[str, Any], of_user: frozenset[str]) -> float:
    """The temperature, 0 for greedy, from two settings that may contradict each other."""
    sample = checked(bool | None, "do_sample", given.pop("do_sample", None))
    temperature = _taken(given, "temperature", NonNegative, 1.0 if sample else 0.0)
    if sample is None or sample == (temperature > 0):
        return temperature
    if "do_sample" in of_user:
        if sample:
            raise ConfigError("temperature", temperature, "a number > 0 beside do_sample=true")
        if "temperature" in of_user:
            raise ConfigError("temperature", temperature, "0, or none, beside do_sample=false")
        return 0.0
    return temperature if "temperature" in of_user else 0.0


def _until(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise ConfigError("until", value, "a text or a list of texts")
    return tuple(text for text in texts if text)


def _taken(given: dict[str, Any], name: str, kind: Any, default: Any) -> Any:
    return checked(kind, name, given.pop(name, default))
