"""Downsampling: smaller images, the baseline that pruning has to beat."""

from __future__ import annotations

from sparsemm_eval.pruning.base import Pruner

# What a smaller image is depends on the model: see ``shrink_image`` and ``thumbnail`` of its family.
PRUNER = Pruner(
    name="downsample",
    title="Downsampling",
    paper="baseline of VTC-Bench",
    meaning="images are made smaller before they are encoded; LLaVA-NeXT keeps their thumbnails only",
)
