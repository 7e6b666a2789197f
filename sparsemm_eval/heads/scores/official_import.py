"""From the official ``{"layer-head": [score, …]}`` format to this package's own."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from sparsemm_eval.errors import HeadScoreError
from sparsemm_eval.heads.scores.table import HeadScores


def import_official(path: str | Path, model: str | None = None) -> HeadScores:
    """Read an official file; its lists hold one score per image.

    Parameters
    ----------
    path : str or Path
    model : str, optional
        Name of the model the scores belong to, for the provenance.

    Returns
    -------
    HeadScores
        Means on the file's own scale. Where all lists are of one length, the provenance holds ``images`` and,
        for more than one image, ``standard_error`` [L, H].

    Raises
    ------
    HeadScoreError
        If the file is of another format or incomplete.
    """
    scores = HeadScores.load(path)
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    if "format" in record:
        raise HeadScoreError(f"{path} is already in this package's format")
    provenance = {**scores.provenance, "file": Path(path).name}
    if model is not None:
        provenance["model"] = model
    lengths = {len(values) if isinstance(values, list) else 1 for values in record.values()}
    if len(lengths) == 1:
        provenance["images"] = images = lengths.pop()
        if images > 1:
            error = torch.zeros_like(scores.table)
            for name, values in record.items():
                layer, head = map(int, name.split("-"))
                spread = torch.tensor(values, dtype=torch.float64).std()
                error[layer, head] = spread / math.sqrt(images)
            provenance["standard_error"] = error.tolist()
    return HeadScores(scores.table, provenance)
