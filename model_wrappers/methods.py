"""What each model name does to the model: a compression method, or heads that are masked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One suffix of a model name.

    Attributes
    ----------
    compression : str
        ``CompressionConfig.method``.
    masked : str or None
        Which heads are masked: ``"visual"`` (those with the highest scores), ``"random"`` (drawn from the
        others) or None.
    """

    compression: str
    masked: str | None = None

    @property
    def needs_head_scores(self) -> bool:
        """Whether a head-score table takes part."""
        return self.compression == "sparsemm" or self.masked is not None


SPARSEMM = Method("sparsemm")
FULLKV = Method("fullkv")
SNAPKV = Method("snapkv")
PYRAMIDKV = Method("pyramidkv")
ADAKV = Method("adakv")
RANDOM = Method("random")
MASK = Method("fullkv", masked="visual")
MASK_RANDOM = Method("fullkv", masked="random")
