"""HeadScores: one number per layer and query head, saying how much that head looks at what it reads."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from sparsemm_eval.checks import Count, Natural, Share, checked
from sparsemm_eval.errors import ConfigError, HeadScoreError
from sparsemm_eval.files import write_text_atomically

FORMAT = "sparsemm-eval/head-scores"
VERSION = 1
# tables in the provenance with one number per head
PER_HEAD = ("hits", "standard_error")
# further entries of the provenance that are used
USED = {
    "model": str,
    "models": list[str],
    "images": Natural,
    "tokens": Natural,
    "topk": Count,
    "bad_boxes": Annotated[dict[str, Natural], Field(description="counts by reason")],
}

Head = tuple[int, int]  # layer, query head


def count_of(share: float, total: int) -> int:
    """Number of heads that make up a share of all; at least one for a share above zero."""
    share = checked(Share, "mask_ratio", share)
    return max(round(share * total), 1) if share > 0 else 0


@dataclass(frozen=True, eq=False)
class HeadScores:
    """Visual scores of all query heads (paper, section "visual head identification").

    Attributes
    ----------
    table : torch.Tensor
        float64 [layers, query heads] on the CPU; non-negative, finite, not all zero. The scale is free:
        only shares of the total are used.
    provenance : mapping
        Where the table comes from: model, weights, anchor data, number of images, seed …

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
            shape = tuple(table.shape)
            raise HeadScoreError(f"head scores have shape {shape}: expected [layers, query heads]")
        if not bool(torch.isfinite(table).all()) or bool((table < 0).any()):
            raise HeadScoreError("head scores must be finite and non-negative")
        total = float(table.sum())
        if total == 0.0:
            raise HeadScoreError("head scores are all zero: no head could be given a share of the budget")
        if math.isinf(total):
            raise HeadScoreError("head scores add up to infinity: use a smaller scale, only shares count")
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

    def best_heads(self, count: int) -> list[Head]:
        """The heads with the highest scores, best first."""
        order = self.table.flatten().argsort(descending=True, stable=True)[:count]
        return [divmod(int(index), self.num_heads) for index in order]

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
        """Share of each KV head in the sum of all scores, float64 [layers, KV heads]; a GQA group is one."""
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

        Raises
        ------
        HeadScoreError
            If the file is missing, is not JSON, or does not describe a full table.
        """
        return cls.parse(_read(path), str(path))

    @classmethod
    def parse(cls, text: str, source: str) -> HeadScores:
        """Read the content of a head-score file; ``source`` names it in errors."""
        try:
            record = _json_object(text)
            return cls(*(_own(record) if "format" in record else _official(record)))
        except (HeadScoreError, ConfigError) as error:
            raise HeadScoreError(f"{source}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the table atomically: a killed process leaves the old file or the new one."""
        shape = {"layers": self.num_layers, "heads": self.num_heads}
        content = {"scores": self.table.tolist(), "provenance": dict(self.provenance)}
        record = {"format": FORMAT, "version": VERSION, **shape, **content}
        try:
            write_text_atomically(Path(path), json.dumps(record) + "\n")
        except OSError as error:
            raise HeadScoreError(f"head scores cannot be written to {path}: {error.strerror}") from error


def import_official(path: str | Path, model: str | None = None) -> HeadScores:
    """Read an official file; its provenance says its name and the model's, where that is given.

    Raises
    ------
    HeadScoreError
        If the file is of another format or incomplete.
    """
    scores = HeadScores.load(path)
    if "format" in json.loads(_read(path)):
        raise HeadScoreError(f"{path} is already in this package's format")
    named = {"file": Path(path).name} | ({} if model is None else {"model": model})
    return HeadScores(scores.table, {**scores.provenance, **named})


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HeadScoreError(f"head-score file {str(path)!r} cannot be read: {reason}") from error


def _json_object(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text, object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError) as error:
        raise HeadScoreError(f"not JSON ({error})") from error
    if not isinstance(record, dict) or not record:
        raise HeadScoreError("expected a JSON object")
    return record


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands there twice")
    return record


def _own(record: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
    """Table and provenance of this package's format."""
    version = record.get("version")
    if record["format"] != FORMAT or version != VERSION or isinstance(version, bool):
        stated = f"format {record['format']!r} version {version!r}"
        raise HeadScoreError(f"{stated}; this package reads {FORMAT!r} version {VERSION}")
    table = _numbers(record.get("scores"))
    if table is None:
        raise HeadScoreError("'scores' is not a [layers, query heads] table of numbers")
    layers, heads = record.get("layers"), record.get("heads")
    if (layers, heads) != tuple(table.shape) or bool in (type(layers), type(heads)):
        stated = f"states layers={layers!r}, heads={heads!r}"
        raise HeadScoreError(f"{stated}, but 'scores' is {tuple(table.shape)}")
    provenance = record.get("provenance", {})
    if not isinstance(provenance, dict):
        raise HeadScoreError(f"'provenance' is {type(provenance).__name__}, expected an object")
    for name in PER_HEAD:
        values = provenance.get(name)
        found = None if values is None else _numbers(values)
        if values is not None and (found is None or found.shape != table.shape):
            raise HeadScoreError(f"'{name}' is not one number for each of {tuple(table.shape)} heads")
    for name, kind in USED.items():
        if provenance.get(name) is not None:
            checked(kind, name, provenance[name])
    return table, provenance


def _official(record: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
    """Means over images, and where all heads have equally many, their number and the standard errors."""
    scores: dict[Head, list[float]] = {}
    for name, given in record.items():
        layer, dash, head = name.partition("-")
        values = given if isinstance(given, list) else [given]
        named = dash and layer.isdecimal() and head.isdecimal()
        if not named or not values or _numbers([values]) is None:
            raise HeadScoreError(f"entry {name!r} is not 'layer-head': [score, …]")
        scores[int(layer), int(head)] = values
    layers, heads = (1 + max(index) for index in zip(*scores, strict=True))
    if not len(scores) == layers * heads == len(record):
        raise HeadScoreError(f"{len(scores)} heads listed, {layers} x {heads} expected")
    table, error = (torch.zeros(layers, heads, dtype=torch.float64) for _ in range(2))
    for head, values in scores.items():
        table[head] = sum(values) / len(values)
        if len(values) > 1:
            error[head] = torch.tensor(values, dtype=torch.float64).std() / math.sqrt(len(values))
    provenance: dict[str, Any] = {"imported_from": "official layer-head format"}
    lengths = set(map(len, scores.values()))
    if len(lengths) == 1:
        provenance["images"] = images = lengths.pop()
        if images > 1:
            provenance["standard_error"] = error.tolist()
    return table, provenance


def _numbers(rows: Any) -> torch.Tensor | None:
    """Rows of numbers as float64 [rows, columns]; None if they are not that."""
    try:
        if any(isinstance(number, bool) for row in rows for number in row):
            return None
        return torch.tensor(rows, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
