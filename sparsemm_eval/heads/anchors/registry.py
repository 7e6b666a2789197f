"""Anchors by name: every file of this folder that has ``ANCHORS`` adds its own."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads import anchors
from sparsemm_eval.heads.anchors.record import Anchor, StoredAnchor


@cache
def known_anchors() -> dict[str, Anchor | StoredAnchor]:
    """All anchors: first those that make their own images, then those of stored data."""
    found: dict[str, Anchor | StoredAnchor] = {}
    for module in pkgutil.iter_modules(anchors.__path__, anchors.__name__ + "."):
        found |= {anchor.name: anchor for anchor in getattr(import_module(module.name), "ANCHORS", ())}
    own = [name for name, anchor in found.items() if isinstance(anchor, Anchor)]
    return {name: found[name] for name in (*sorted(own), *sorted(found.keys() - set(own)))}


def anchor_named(name: str, data: str | None = None) -> Anchor:
    """Look an anchor up; ``data`` says where a stored anchor's images and boxes are.

    Raises
    ------
    ConfigError
        If there is no such anchor, or the data does not fit it.
    """
    found = known_anchors().get(name)
    if found is None:
        raise ConfigError("anchor", name, "one of " + ", ".join(known_anchors()))
    if isinstance(found, StoredAnchor):
        return found.open(data)
    if data is not None:
        raise ConfigError("data", data, f"nothing: anchor {name!r} makes its own images")
    return found
