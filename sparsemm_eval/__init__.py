"""Honest, fast evaluation of KV-cache compression for multimodal LLMs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsemm_eval.compression.attach import compress
    from sparsemm_eval.compression.cache import RaggedCache
    from sparsemm_eval.config import CompressionConfig
    from sparsemm_eval.head_score_table import HeadScores

__version__ = "0.1.0"

__all__ = ["CompressionConfig", "HeadScores", "RaggedCache", "__version__", "compress"]

# Looked up on first use: lmms-eval imports this package at every start, and commands should answer at once.
_HOMES = {
    "compress": "sparsemm_eval.compression.attach",
    "RaggedCache": "sparsemm_eval.compression.cache",
    "CompressionConfig": "sparsemm_eval.config",
    "HeadScores": "sparsemm_eval.head_score_table",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
