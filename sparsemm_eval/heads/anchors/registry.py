"""Anchors by name."""

from __future__ import annotations

from collections.abc import Callable

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.anchors.coco import coco_anchor
from sparsemm_eval.heads.anchors.ctw import ctw_anchor
from sparsemm_eval.heads.anchors.ctw1500 import ctw1500_anchor
from sparsemm_eval.heads.anchors.documents import DOCUMENT_LETTERS, DOCUMENTS
from sparsemm_eval.heads.anchors.mlt import mlt_anchor
from sparsemm_eval.heads.anchors.pages import PAGE_VALUES, PAGES
from sparsemm_eval.heads.anchors.record import Anchor
from sparsemm_eval.heads.anchors.synthdog import synthdog_anchor

BUILT_IN = {anchor.name: anchor for anchor in (PAGES, PAGE_VALUES, DOCUMENTS, DOCUMENT_LETTERS)}
STORED: dict[str, Callable[[str | None], Anchor]] = {
    "synthdog": synthdog_anchor,
    "mlt": mlt_anchor,
    "ctw": ctw_anchor,
    "ctw1500": ctw1500_anchor,
    "coco": coco_anchor,
}


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
    if name in STORED:
        return STORED[name](data)
    if name not in BUILT_IN:
        raise ConfigError("anchor", name, "one of " + ", ".join([*BUILT_IN, *STORED]))
    if data is not None:
        raise ConfigError("data", data, f"nothing: anchor {name!r} makes its own images")
    return BUILT_IN[name]
