"""CompressionConfig: one frozen, checked record of a method and every number that changes what it keeps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import InstanceOf

from sparsemm_eval.checks import Count, checked
from sparsemm_eval.errors import ConfigError, nearest, one_of
from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.methods import sparsemm
from sparsemm_eval.methods.base import WINDOW, Knob, Method, Score, last_window
from sparsemm_eval.methods.registry import all_knobs, method_named, score_named
from sparsemm_eval.pruning.base import Pruner
from sparsemm_eval.pruning.registry import SETTING, pruner_named, pruners, pruning_knobs

#: Given to any method, so that one loop serves all; where they play no part they change nothing.
COMMON = ("budget", "window")
DEFAULT_BUDGET = 256


@dataclass(frozen=True, init=False, repr=False)
class CompressionConfig:
    """How a prompt's KV cache is cut after prefill.

    Parameters
    ----------
    method : str
        A name of ``sparsemm_eval.methods.methods()``.
    budget : int
        Mean number of KV entries per KV head over all layers, protected ones included. Larger than ``window``
        where the observation window plays a part. Ignored by methods that evict nothing.
    window : int
        Observation window w: the last w prompt tokens, whose attention scores the others.
    score : str, optional
        Score other entries than the method itself does: a name of ``sparsemm_eval.methods.scores()``.
    head_scores : str, Path or HeadScores, optional
        For methods that need them: a name, the path of a file, or a table.
    prune : str, optional
        Leave image tokens out besides: a name of ``sparsemm_eval.pruning.registry.pruners()``.
    **knobs
        The method's own, its score's and the pruner's, which are attributes of the record:
        ``config.kernel_size``. Their defaults and ranges stand in the method's or pruner's file.

    Raises
    ------
    ConfigError
        If a value is out of range or plays no part in the method; the message names the argument, the value
        and what would be right.
    """

    method: str
    budget: int
    window: int
    score: str | None
    head_scores: str | Path | HeadScores | None
    prune: str | None
    knobs: Mapping[str, Any] = field(hash=False)

    def __init__(
        self,
        method: str = sparsemm.METHOD.name,
        budget: int = DEFAULT_BUDGET,
        window: int = WINDOW.default,
        *,
        score: str | None = None,
        head_scores: str | Path | HeadScores | None = None,
        prune: str | None = None,
        **knobs: Any,
    ):
        rule = method_named(method)
        self._set("method", rule.name)
        self._set("score", None if score is None else _score(rule, score).name)
        self._set("budget", checked(Count, "budget", budget))
        self._set("window", checked(WINDOW.kind, "window", window))
        self._set("head_scores", _head_scores(head_scores, "head_scores" in self.needs, method))
        self._set(SETTING, None if prune is None else pruner_named(prune).name)
        own = self._own_knobs()
        for name, value in knobs.items():
            if name not in own:
                raise ConfigError(name, value, _refusal(name, method, own))
        values = {name: checked(knob.kind, name, knobs.get(name, knob.default)) for name, knob in own.items()}
        self._set("knobs", values)
        if self.uses_window and self.budget <= self.window:
            remedy = (
                f"an integer > window ({self.window}): the window is part of the budget and is always kept"
            )
            raise ConfigError("budget", self.budget, remedy)
        if rule.check is not None:
            rule.check(self)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        knobs = self.__dict__.get("knobs", {})
        if name in knobs:
            return knobs[name]
        raise AttributeError(f"{name!r} is no knob of method {self.__dict__.get('method')!r}")

    def __repr__(self) -> str:
        return "CompressionConfig(" + ", ".join(f"{k}={v!r}" for k, v in self._given().items()) + ")"

    @property
    def rule(self) -> Method:
        """The method's record."""
        return method_named(self.method)

    @property
    def score_in_use(self) -> Score | None:
        """The score that decides: the one that was asked for, else the method's own."""
        return self.rule.score if self.score is None else score_named(self.score)

    @property
    def needs(self) -> frozenset[str]:
        """What method and score need, of ``methods.base.NEEDS``."""
        return needs_of(self.rule, self.score_in_use)

    @property
    def evicts(self) -> bool:
        """Whether the method may evict anything at all."""
        return self.rule.evicts

    @property
    def pruner(self) -> Pruner | None:
        """What leaves image tokens out."""
        return None if self.prune is None else pruner_named(self.prune)

    @property
    def uses_window(self) -> bool:
        """Whether the observation window plays a part."""
        return WINDOW.name in knobs_in_use(self.rule, self.score_in_use)

    @property
    def kept_window(self) -> int:
        """Tokens at a prompt's end that every KV head keeps; 0 where the method does not protect them."""
        return self.window if self.evicts and self.rule.protect is last_window else 0

    def _own_knobs(self) -> dict[str, Knob]:
        every = knobs_in_use(self.rule, self.score_in_use, self.pruner)
        return {name: knob for name, knob in every.items() if name not in COMMON}

    def _given(self) -> dict[str, Any]:
        score = {} if self.score is None else {"score": self.score}
        scores = {} if self.head_scores is None else {"head_scores": self.head_scores}
        common = {"budget": self.budget} if self.evicts else {}
        common |= {"window": self.window} if self.uses_window else {}
        prune = {} if self.prune is None else {SETTING: self.prune}
        return {"method": self.method, **common, **score, **scores, **prune, **self.knobs}

    @classmethod
    def fitting(cls, method: str, **settings: Any) -> CompressionConfig:
        """A config from settings that several methods share: what plays no part in this one is left out.

        Raises
        ------
        ConfigError
            For a name that no method knows, and for values out of range.
        """
        rule = method_named(method)
        score = score_named(settings["score"]) if rule.evicts and settings.get("score") else None
        pruner = pruner_named(settings[SETTING]) if settings.get(SETTING) else None
        used, needs = knobs_in_use(rule, score, pruner), needs_of(rule, score)
        known = setting_names()
        for name in settings:
            if name not in known:
                raise ConfigError(name, settings[name], one_of(name, sorted(known)))
        takes = {*COMMON, SETTING, *used, *({"score"} if score else ()), *({"head_scores"} & needs)}
        return cls(method, **{name: value for name, value in settings.items() if name in takes})

    def replace(self, **changes: Any) -> CompressionConfig:
        """A copy with some settings changed, checked again."""
        before = {"budget": self.budget, "window": self.window, **self._given()}
        return CompressionConfig(**{**before, **changes})

    def without_pruning(self) -> CompressionConfig:
        """The same method for whole prompts."""
        of_pruner = {SETTING, *pruning_knobs()}
        return CompressionConfig(**{k: v for k, v in self._given().items() if k not in of_pruner})

    def to_dict(self) -> dict[str, Any]:
        """Everything that plays a part, as JSON types; a table of head scores as ``"sha256:…"``."""
        record = self._given()
        if isinstance(self.head_scores, HeadScores):
            record["head_scores"] = f"sha256:{self.head_scores.digest()}"
        elif self.head_scores is not None:
            record["head_scores"] = str(self.head_scores)
        return record

    def digest(self) -> str:
        """Hex SHA-256 over ``to_dict``: equal for configs that keep the same entries by the same rule."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def setting_names() -> tuple[str, ...]:
    """Names of all settings besides the method."""
    return tuple(dict.fromkeys((*COMMON, "score", "head_scores", *all_knobs(), SETTING, *pruning_knobs())))


def knobs_in_use(
    method: Method, score: Score | None = None, pruner: Pruner | None = None
) -> Mapping[str, Knob]:
    """The knobs that play a part in a method, under its own score or another; without the budget."""
    owners = (score or method.score, method, pruner)
    return {knob.name: knob for owner in owners if owner is not None for knob in owner.knobs}


def needs_of(method: Method, score: Score | None = None) -> frozenset[str]:
    """What a method needs, of ``methods.base.NEEDS``, under its own score or another one."""
    owners = (score or method.score, method)
    return frozenset(need for owner in owners if owner is not None for need in owner.needs)


def _score(rule: Method, name: Any) -> Score:
    if rule.score is None:
        raise ConfigError("score", name, f"no value: {rule.name} evicts nothing")
    return score_named(name)


def _head_scores(given: Any, needed: bool, method: str) -> Any:
    if given is not None and not needed:
        raise ConfigError("head_scores", given, f"no value: they play no part in {method}")
    return checked(str | Path | InstanceOf[HeadScores] | None, "head_scores", given)


def _refusal(name: str, method: str, own: Mapping[str, Knob]) -> str:
    if name in all_knobs():
        return f"no value: it plays no part in {method}"
    if name in pruning_knobs():
        users = [one.name for one in pruners().values() if name in (knob.name for knob in one.knobs)]
        return f"no value without {SETTING}={' or '.join(users)}"
    return "a knob of " + method + ": " + (", ".join(sorted(own)) or "it has none") + nearest(name, own)
