"""Which methods and scores there are: those in this folder, those of plug-ins, those registered by hand.

A plug-in is an entry point of the group ``sparsemm_eval.methods`` or a module named in ``SPARSEMM_PLUGINS``.
Like the files of this folder it offers methods as ``METHOD`` or ``METHODS`` and a further score as ``SCORE``.
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any

from sparsemm_eval.errors import ConfigError, one_of
from sparsemm_eval.methods.base import Knob, Method, Score

GROUP = "sparsemm_eval.methods"
PLUGINS = "SPARSEMM_PLUGINS"


@dataclass
class _Registry:
    """What is known in this process; files and plug-ins are imported at the first look."""

    methods: dict[str, Method] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    loaded: bool = False

    def look(self) -> _Registry:
        if not self.loaded:
            self.loaded = True  # a plug-in may register while it is imported
            try:
                self._load()
            except BaseException:
                self.loaded = False
                raise
        return self

    def _load(self) -> None:
        package = __name__.rpartition(".")[0]
        for module in pkgutil.iter_modules(import_module(package).__path__):
            self._take(import_module(f"{package}.{module.name}"))
        for point in entry_points(group=GROUP):
            self._take_from(f"entry point {point.name} of {GROUP}", point.value, point.load)
        for name in filter(None, map(str.strip, os.environ.get(PLUGINS, "").split(","))):
            self._take_from(PLUGINS, name, lambda name=name: import_module(name))

    def _take_from(self, source: str, name: str, load: Callable[[], Any]) -> None:
        before = len(self.methods)
        try:
            offered = load()
        except Exception as error:
            remedy = f"a module that can be imported ({type(error).__name__}: {error})"
            raise ConfigError(source, name, remedy) from error
        if not self._take(offered) and len(self.methods) == before:
            raise ConfigError(
                source, name, "a module with METHOD, METHODS or SCORE, or one that registers some"
            )

    def _take(self, offered: Any) -> bool:
        """Add what a module offers; whether it offers anything."""
        methods = [offered, getattr(offered, "METHOD", None), *getattr(offered, "METHODS", ())]
        methods = [one for one in methods if isinstance(one, Method)]
        for method in methods:
            self.add(method)
        score = getattr(offered, "SCORE", None)
        if isinstance(score, Score):
            self.add_score(score)
        return bool(methods) or isinstance(score, Score)

    def add(self, method: Method) -> None:
        if self.methods.get(method.name, method) != method:
            raise ConfigError("method", method.name, "a name that no other method has")
        if method.score is not None:
            self.add_score(method.score)
        self.methods[method.name] = method

    def add_score(self, score: Score) -> None:
        if self.scores.get(score.name, score) != score:
            raise ConfigError("score", score.name, "a name that no other score has")
        self.scores[score.name] = score


_REGISTRY = _Registry()


def register(method: Method) -> Method:
    """Make a method known in this process.

    Returns
    -------
    Method
        The same, so that a module can write ``METHOD = register(Method(…))``.

    Raises
    ------
    ConfigError
        If another method, or another score, has its name.
    """
    if not isinstance(method, Method):
        raise ConfigError("method", method, "a sparsemm_eval.methods.Method")
    _REGISTRY.look().add(method)
    return method


def methods() -> Mapping[str, Method]:
    """All methods: those that keep everything, then those that evict, then those that mask heads."""
    found = sorted(
        _REGISTRY.look().methods.values(), key=lambda one: (one.mask is not None, one.evicts, one.name)
    )
    return MappingProxyType({one.name: one for one in found})


def scores() -> Mapping[str, Score]:
    """All scores by name."""
    return MappingProxyType(dict(sorted(_REGISTRY.look().scores.items())))


def method_named(name: str) -> Method:
    """Look a method up.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    known = _REGISTRY.look().methods
    if name not in known:
        raise ConfigError("method", name, one_of(name, methods()))
    return known[name]


def score_named(name: str) -> Score:
    """Look a score up.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    known = _REGISTRY.look().scores
    if name not in known:
        raise ConfigError("score", name, one_of(name, scores()))
    return known[name]


def all_knobs() -> Mapping[str, Knob]:
    """Every knob of every method and score, by name."""
    owners = (*scores().values(), *methods().values())
    return {knob.name: knob for owner in owners for knob in owner.knobs}
