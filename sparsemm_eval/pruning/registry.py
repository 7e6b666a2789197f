"""Which pruners there are: one file of this folder each."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType

from sparsemm_eval.errors import ConfigError, one_of
from sparsemm_eval.methods.base import Knob
from sparsemm_eval.pruning.base import Pruner

#: The setting that names a pruner.
SETTING = "prune"


@cache
def pruners() -> Mapping[str, Pruner]:
    """All pruners by name."""
    package = __name__.rpartition(".")[0]
    modules = pkgutil.iter_modules(import_module(package).__path__)
    found = [getattr(import_module(f"{package}.{one.name}"), "PRUNER", None) for one in modules]
    return MappingProxyType({pruner.name: pruner for pruner in found if pruner is not None})


def pruner_named(name: str) -> Pruner:
    """Look a pruner up.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    if not isinstance(name, str) or name not in pruners():
        raise ConfigError(SETTING, name, one_of(name, pruners()))
    return pruners()[name]


def pruning_knobs() -> Mapping[str, Knob]:
    """Every knob of every pruner, by name."""
    return {knob.name: knob for pruner in pruners().values() for knob in pruner.knobs}
