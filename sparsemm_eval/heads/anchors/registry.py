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
    found: list[Anchor | StoredAnchor] = []
    for module in pkgutil.iter_modules(anchors.__path__, anchors.__name__ + "."):
        found += getattr(import_module(module.name), "ANCHORS", ())
    return {anchor.name: anchor for anchor in sorted(found, key=_order)}


def anchor_named(name: str, data: str | None = None) -> Anchor:
    """Look an anchor up.

    Parameters
    ----------
    name : str
    data : str, optional
        Where a stored anchor's images and boxes are.

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


def _order(anchor: Anchor | StoredAnchor) -> tuple[bool, str]:
    return isinstance(anchor, StoredAnchor), anchor.name
