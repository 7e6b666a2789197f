"""Answers and what was measured while they were made."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from lmms_eval.api.instance import GenerationResult, TokenCounts

from sparsemm_eval.cache.statistics import CacheStats

TABLES = ("kept", "evidence_kept")  # the fields of a Measurement that are tables


@dataclass(frozen=True)
class Measurement:
    """One sample's own figures, and its share of those of a ``generate`` call.

    Attributes
    ----------
    prompt_tokens : int
        Padding excluded, before any are pruned.
    effective_budget : float
        Mean entries kept per KV head over all layers.
    kept : numpy.ndarray
        int32 [layers, KV heads], entries kept of the prompt.
    kv_bytes, kv_bytes_full : int
        Bytes of the prompt's entries after compression, and what FullKV would hold of the same prompt.
    kv_bytes_end : int
        Bytes of the entries held in the end, those of generated tokens included.
    batch : int
        Rows of the call.
    kv_bytes_reserve : float
        Equal share of the bytes that were allocated and still free in the end.
    kv_bytes_peak_per_call : int
        Most bytes of keys and values allocated at once, for all rows and with the reserve.
    prefill_seconds, warm_up_seconds : float
        Equal shares of the time to the first token, and of compiling and capturing.
    decode_seconds_per_step : float or None
        Of all rows together; None where there was one token only.
    seconds : float
        Equal share of the call, warm-up left out.
    evidence_tokens : int or None
        Prompt tokens that show what the answer is read from; None where the document does not say.
    evidence_kept : numpy.ndarray or None
        int32 [layers, KV heads], those of them that are among the entries kept.
    image_tokens, image_tokens_kept : int or None
        Of the prompt's tokens, those of images, and those that pruning leaves to the last layer.
    prefill_flops : int or None
        Estimated operations of the text model's layers on the prompt.
    """

    prompt_tokens: int
    effective_budget: float
    kept: np.ndarray
    kv_bytes: int
    kv_bytes_full: int
    kv_bytes_end: int
    batch: int
    kv_bytes_reserve: float
    kv_bytes_peak_per_call: int
    prefill_seconds: float
    warm_up_seconds: float
    decode_seconds_per_step: float | None
    seconds: float
    evidence_tokens: int | None = None
    evidence_kept: np.ndarray | None = None
    image_tokens: int | None = None
    image_tokens_kept: int | None = None
    prefill_flops: int | None = None

    @classmethod
    def of_row(cls, stats: CacheStats, row: int, image_tokens: int | None = None) -> Measurement:
        """From the statistics of a call, and the image tokens of this row before any are pruned."""
        rows, step, flops = stats.kept.shape[1], stats.decode_seconds_per_step, stats.prefill_flops
        evidence = 0 if stats.evidence_tokens is None else int(stats.evidence_tokens[row])
        return cls(
            prompt_tokens=int(stats.prompt_lengths[row]),
            effective_budget=float(stats.effective_budgets[row]),
            kept=stats.kept[:, row].cpu().numpy().astype(np.int32),
            kv_bytes=int(stats.kv_bytes[row]),
            kv_bytes_full=int(stats.kv_bytes_full[row]),
            kv_bytes_end=int(stats.kv_bytes_end[row]),
            batch=rows,
            kv_bytes_reserve=(stats.kv_bytes_allocated - int(stats.kv_bytes_end.sum())) / rows,
            kv_bytes_peak_per_call=int(stats.kv_bytes_peak),
            prefill_seconds=stats.prefill_seconds / rows,
            warm_up_seconds=stats.warm_up_seconds / rows,
            decode_seconds_per_step=step,
            seconds=(stats.prefill_seconds + (step or 0.0) * stats.generated) / rows,
            evidence_tokens=evidence or None,
            evidence_kept=stats.evidence_kept[:, row].numpy().astype(np.int32) if evidence else None,
            image_tokens=image_tokens,
            image_tokens_kept=None if image_tokens is None else image_tokens - int(stats.pruned_tokens[row]),
            prefill_flops=None if flops is None else int(flops[row]),
        )

    def to_record(self) -> dict[str, Any]:
        """JSON types; tables as nested lists."""
        return asdict(self) | {name: table.tolist() for name, table in self._tables().items()}

    def to_compact_record(self) -> dict[str, Any]:
        """JSON types; tables as shape and compressed int32, an eighth of the lists' size."""
        return asdict(self) | {name: _packed(table) for name, table in self._tables().items()}

    def _tables(self) -> dict[str, np.ndarray]:
        tables = {name: getattr(self, name) for name in TABLES}
        return {name: table for name, table in tables.items() if table is not None}

    @classmethod
    def from_compact_record(cls, record: Mapping[str, Any]) -> Measurement:
        """What `to_compact_record` gave, here or in a version that did not know of evidence."""
        return cls(**{**record, **{name: _unpacked(record[name]) for name in TABLES if record.get(name)}})


def _packed(table: np.ndarray) -> dict[str, Any]:
    packed = base64.b64encode(zlib.compress(table.astype("<i4").tobytes())).decode()
    return {"shape": list(table.shape), "zlib_int32": packed}


def _unpacked(record: Mapping[str, Any]) -> np.ndarray:
    raw = zlib.decompress(base64.b64decode(record["zlib_int32"]))
    return np.frombuffer(raw, dtype="<i4").astype(np.int32).reshape(record["shape"])


@dataclass(frozen=True)
class Answer:
    """A sample's answer.

    Attributes
    ----------
    text : str
        Cut at stop texts.
    tokens : tuple of int
        Generated tokens, end token included, padding left out.
    """

    task: str
    doc_id: int
    repeat: int
    text: str
    tokens: tuple[int, ...]
    measured: Measurement

    def to_result(self) -> GenerationResult:
        """For lmms-eval; what was measured travels with the token counts into its samples file."""
        counts = MeasuredTokenCounts(
            input_tokens=self.measured.prompt_tokens,
            output_tokens=len(self.tokens),
            **{name: getattr(self.measured, name) for name in MeasuredTokenCounts.own},
        )
        return GenerationResult(text=self.text, token_counts=counts)


@dataclass
class MeasuredTokenCounts(TokenCounts):
    """Token counts that carry the sample's effective budget and KV bytes into lmms-eval's samples file.

    Times are left out: equal runs must write equal samples.
    """

    effective_budget: float = 0.0
    kv_bytes: int = 0
    kv_bytes_full: int = 0
    own: ClassVar[tuple[str, ...]] = ("effective_budget", "kv_bytes", "kv_bytes_full")

    def to_dict(self) -> dict[str, Any]:
        """What lmms-eval writes."""
        return super().to_dict() | {name: getattr(self, name) for name in self.own}
