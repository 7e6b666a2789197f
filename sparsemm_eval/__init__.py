"""Honest, fast evaluation of KV-cache compression for multimodal LLMs."""

from sparsemm_eval.compression.attach import compress
from sparsemm_eval.compression.cache import RaggedCache
from sparsemm_eval.config import CompressionConfig
from sparsemm_eval.head_score_table import HeadScores

__version__ = "0.1.0"

__all__ = ["CompressionConfig", "HeadScores", "RaggedCache", "__version__", "compress"]
