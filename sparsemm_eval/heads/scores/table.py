"""HeadScores: one number per layer and query head, saying how much that head looks at what it reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sparsemm_eval.errors import HeadScoreError
from sparsemm_eval.files import write_text_atomically

FORMAT = "sparsemm-eval/head-scores"
VERSION = 1
# tables in the provenance with one number per head
PER_HEAD = ("hits", "standard_error")


@dataclass(frozen=True, eq=False)
class HeadScores:
    """Visual scores of all query heads (paper, section "visual head identification").

    Attributes
    ----------
    table : torch.Tensor
        float64 [layers, query heads] on the CPU; non-negative, finite, not all zero. The scale is free:
        only shares of the total are used.
    provenance : mapping
        Where the table comes from: model, revision, anchor data, number of images, seed …

    Raises
    ------
    HeadScoreError
        If the table has another shape or holds values that cannot be scores.
    """

    table: torch.Tensor
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        table = torch.as_tensor(self.table).detach().to("cpu", torch.float64).clone()
        if table.ndim != 2 or 0 in table.shape:
            raise HeadScoreError(
                f"head scores have shape {tuple(table.shape)}: expected [layers, query heads]"
            )
        if not bool(torch.isfinite(table).all()) or bool((table < 0).any()):
            raise HeadScoreError("head scores must be finite and non-negative")
        if float(table.sum()) == 0.0:
            raise HeadScoreError("head scores are all zero: no head could be given a share of the budget")
        object.__setattr__(self, "table", table)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeadScores) and torch.equal(self.table, other.table)

    def __hash__(self) -> int:
        return hash(self.digest())

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return self.table.shape[0]

    @property
    def num_heads(self) -> int:
        """Number of query heads per layer."""
        return self.table.shape[1]

    @property
    def weights(self) -> str | None:
        """Fingerprint of the weights that were scored, ``sha256:…``; None where the table does not say."""
        # Tables of earlier versions have it as their revision.
        stated = self.provenance.get("weights", self.provenance.get("revision"))
        return stated if isinstance(stated, str) and stated.startswith("sha256:") else None

    def digest(self) -> str:
        """Hex SHA-256 of shape and values; provenance does not enter."""
        content = hashlib.sha256(repr(tuple(self.table.shape)).encode())
        content.update(self.table.contiguous().numpy().tobytes())
        return content.hexdigest()

    def check_fits(self, num_layers: int, num_heads: int) -> None:
        """Raise HeadScoreError unless the table is [num_layers, num_heads]."""
        if (self.num_layers, self.num_heads) != (num_layers, num_heads):
            raise HeadScoreError(
                f"head scores are [{self.num_layers} layers, {self.num_heads} query heads], "
                f"the model has [{num_layers}, {num_heads}]: use scores made for this model"
            )

    def kv_head_shares(self, num_kv_heads: int) -> torch.Tensor:
        """Share of each KV head in the sum of all scores; a GQA group's query heads are added up.

        Returns
        -------
        torch.Tensor
            float64 [layers, KV heads], summing to 1.
        """
        if num_kv_heads < 1 or self.num_heads % num_kv_heads:
            raise HeadScoreError(f"{self.num_heads} query heads do not group into {num_kv_heads} KV heads")
        grouped = self.table.view(self.num_layers, num_kv_heads, -1).sum(-1)
        return grouped / self.table.sum()

    @classmethod
    def from_array(cls, table: Any, **provenance: Any) -> HeadScores:
        """From [layers, query heads] in numpy, torch or nested lists."""
        return cls(torch.as_tensor(table), provenance)

    @classmethod
    def load(cls, path: str | Path) -> HeadScores:
        """Read a file in this package's format or in the official ``{"layer-head": [score, …]}`` one.

        The official format lists one score per image; the head's score is their mean.

        Raises
        ------
        HeadScoreError
            If the file is missing, is not JSON, or does not describe a full table.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise HeadScoreError(f"head-score file {str(path)!r} cannot be read: {error.strerror}") from error
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, source: str) -> HeadScores:
        """Read the content of a head-score file; ``source`` names it in errors."""
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise HeadScoreError(f"{source}: not JSON ({error})") from error
        if not isinstance(record, dict) or not record:
            raise HeadScoreError(f"{source}: expected a JSON object")
        if "format" in record:
            return cls._parse_own(record, source)
        return cls._parse_official(record, source)

    @classmethod
    def _parse_own(cls, record: dict[str, Any], source: str) -> HeadScores:
        if record["format"] != FORMAT or record.get("version") != VERSION:
            raise HeadScoreError(
                f"{source}: format {record['format']!r} version {record.get('version')!r}; "
                f"this package reads {FORMAT!r} version {VERSION}"
            )
        try:
            table = torch.tensor(record["scores"], dtype=torch.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise HeadScoreError(
                f"{source}: 'scores' is not a [layers, query heads] table of numbers"
            ) from error
        stated = (record.get("layers"), record.get("heads"))
        if stated != tuple(table.shape):
            raise HeadScoreError(
                f"{source}: states layers={stated[0]!r}, heads={stated[1]!r}, but 'scores' is "
                f"{tuple(table.shape)}"
            )
        provenance = record.get("provenance", {})
        if not isinstance(provenance, dict):
            raise HeadScoreError(f"{source}: 'provenance' is {type(provenance).__name__}, expected an object")
        for name in PER_HEAD:
            values = provenance.get(name)
            if values is not None and _shape(values) != tuple(table.shape):
                raise HeadScoreError(
                    f"{source}: '{name}' is not one number for each of {tuple(table.shape)} heads"
                )
        return cls(table, provenance)

    @classmethod
    def _parse_official(cls, record: dict[str, Any], source: str) -> HeadScores:
        means: dict[tuple[int, int], float] = {}
        for name, values in record.items():
            layer, dash, head = name.partition("-")
            numbers = values if isinstance(values, list) else [values]
            valid = all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers)
            if not (dash and layer.isdecimal() and head.isdecimal() and numbers and valid):
                raise HeadScoreError(f"{source}: entry {name!r} is not 'layer-head': [score, …]")
            means[int(layer), int(head)] = sum(numbers) / len(numbers)
        layers, heads = (1 + max(index) for index in zip(*means, strict=True))
        if len(means) != layers * heads:
            raise HeadScoreError(f"{source}: {len(means)} heads listed, {layers} x {heads} expected")
        table = torch.zeros(layers, heads, dtype=torch.float64)
        for (layer, head), mean in means.items():
            table[layer, head] = mean
        return cls(table, {"imported_from": "official layer-head format"})

    def save(self, path: str | Path) -> None:
        """Write the table atomically: a killed process leaves the old file or the new one."""
        record = {
            "format": FORMAT,
            "version": VERSION,
            "layers": self.num_layers,
            "heads": self.num_heads,
            "scores": self.table.tolist(),
            "provenance": dict(self.provenance),
        }
        write_text_atomically(Path(path), json.dumps(record) + "\n")

    @classmethod
    def resolve(cls, scores: str | Path | HeadScores | None, model_name: str | None = None) -> HeadScores:
        """Scores given explicitly, or the ones known for a model; see ``head_score_lookup.resolve``."""
        from sparsemm_eval.heads.scores.lookup import resolve

        return resolve(scores, model_name)


def _shape(values: Any) -> tuple[int, ...] | None:
    """Shape of nested lists of numbers; None if they are not that."""
    try:
        return tuple(torch.tensor(values, dtype=torch.float64).shape)
    except (TypeError, ValueError):
        return None
