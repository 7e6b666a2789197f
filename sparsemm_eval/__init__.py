"""Honest, fast evaluation of KV-cache compression for multimodal LLMs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsemm_eval.cache.ragged_cache import RaggedCache
    from sparsemm_eval.config import CompressionConfig
    from sparsemm_eval.heads.scores.table import HeadScores
    from sparsemm_eval.model.session import compress

__version__ = "0.1.0"

__all__ = ["CompressionConfig", "HeadScores", "RaggedCache", "__version__", "compress"]

# Looked up on first use: lmms-eval imports this package at every start, and commands should answer at once.
_HOMES = {
    "compress": "sparsemm_eval.model.session",
    "RaggedCache": "sparsemm_eval.cache.ragged_cache",
    "CompressionConfig": "sparsemm_eval.config",
    "HeadScores": "sparsemm_eval.heads.scores.table",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
