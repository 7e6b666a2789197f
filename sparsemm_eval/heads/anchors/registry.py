"""Anchors by name."""

from __future__ import annotations

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.anchors.pages import PAGE_VALUES, PAGES
from sparsemm_eval.heads.anchors.record import Anchor

ANCHORS = {anchor.name: anchor for anchor in (PAGES, PAGE_VALUES)}


def anchor_named(name: str) -> Anchor:
    """Look a built-in anchor up.

    Raises
    ------
    ConfigError
        If there is none of that name; the message lists all.
    """
    if name not in ANCHORS:
        raise ConfigError("anchor", name, "one of " + ", ".join(sorted(ANCHORS)))
    return ANCHORS[name]
