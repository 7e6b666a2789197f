"""Which model families there are: one file of this folder each, found by the checkpoint's ``model_type``."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType

from transformers import PreTrainedConfig

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.model.families.base import Family

#: Instead of a family: whichever the checkpoint is of.
ANY_FAMILY = "vlm"


@cache
def families() -> Mapping[str, Family]:
    """All families by name."""
    package = __name__.rpartition(".")[0]
    modules = pkgutil.iter_modules(import_module(package).__path__)
    found = [getattr(import_module(f"{package}.{one.name}"), "FAMILY", None) for one in modules]
    return MappingProxyType({family.name: family for family in found if family is not None})


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a checkpoint.

    Raises
    ------
    UnsupportedError
        If no family has its ``model_type``.
    """
    for family in families().values():
        if config.model_type in family.model_types:
            return family
    known = ", ".join(kind for family in families().values() for kind in family.model_types)
    raise UnsupportedError(f"model_type={config.model_type!r} is of no known family; there are {known}")
