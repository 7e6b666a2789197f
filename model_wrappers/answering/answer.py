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


@dataclass(frozen=True)
class Measurement:
    """One sample's share of a ``generate`` call.

    Attributes
    ----------
    prompt_tokens : int
        Padding excluded.
    effective_budget : float
        Mean entries kept per KV head over all layers.
    kept : numpy.ndarray
        int32 [layers, KV heads], entries kept of the prompt.
    kv_bytes, kv_bytes_full : int
        Bytes of the prompt's entries after compression, and what FullKV would hold of the same prompt.
    batch : int
        Rows of the call; the figures below are those of the whole call.
    kv_bytes_peak, kv_bytes_end : int
        Most bytes of keys and values alive at once, and bytes allocated in the end.
    prefill_seconds : float
    decode_seconds : float or None
        Per token after the first; None where there was one token only.
    seconds : float
        This sample's equal share of the whole call.
    """

    prompt_tokens: int
    effective_budget: float
    kept: np.ndarray
    kv_bytes: int
    kv_bytes_full: int
    batch: int
    kv_bytes_peak: int
    kv_bytes_end: int
    prefill_seconds: float
    decode_seconds: float | None
    seconds: float

    @classmethod
    def of_row(cls, stats: CacheStats, row: int) -> Measurement:
        """From the statistics of a call."""
        rows = stats.kept.shape[1]
        return cls(
            prompt_tokens=int(stats.prompt_lengths[row]),
            effective_budget=float(stats.effective_budgets[row]),
            kept=stats.kept[:, row].cpu().numpy().astype(np.int32),
            kv_bytes=int(stats.kv_bytes[row]),
            kv_bytes_full=int(stats.kv_bytes_full[row]),
            batch=rows,
            kv_bytes_peak=int(stats.kv_bytes_peak),
            kv_bytes_end=int(stats.kv_bytes_end),
            prefill_seconds=float(stats.prefill_seconds),
            decode_seconds=None if stats.decode_seconds is None else float(stats.decode_seconds),
            seconds=(stats.prefill_seconds + (stats.decode_seconds or 0.0) * stats.generated) / rows,
        )

    def to_record(self) -> dict[str, Any]:
        """JSON types; ``kept`` as nested lists."""
        return asdict(self) | {"kept": self.kept.tolist()}

    def to_compact_record(self) -> dict[str, Any]:
        """JSON types; ``kept`` as shape and compressed int32, an eighth of the lists' size."""
        packed = base64.b64encode(zlib.compress(self.kept.astype("<i4").tobytes())).decode()
        return asdict(self) | {"kept": {"shape": list(self.kept.shape), "zlib_int32": packed}}

    @classmethod
    def from_compact_record(cls, record: Mapping[str, Any]) -> Measurement:
        """What `to_compact_record` gave."""
        kept = record["kept"]
        raw = zlib.decompress(base64.b64decode(kept["zlib_int32"]))
        table = np.frombuffer(raw, dtype="<i4").astype(np.int32).reshape(kept["shape"])
        return cls(**{**record, "kept": table})


@dataclass(frozen=True)
class Answer:
    """A sample's answer.

    Attributes
    ----------
    task : str
    doc_id : int
    repeat : int
    text : str
        Cut at stop texts.
    tokens : tuple of int
        Generated tokens, end token included, padding left out.
    measured : Measurement
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
