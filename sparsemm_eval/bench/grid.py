"""Every combination of method, mode, length and batch size on one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from sparsemm_eval.bench.model_runs import Setting, measure, samples_per_second
from sparsemm_eval.bench.report import record

FULLKV_ONLY = ("dynamic", "static")


@dataclass(frozen=True)
class Grid:
    """What is combined; ``steps`` are timed decode steps, or new tokens per sample."""

    methods: Sequence[str]
    modes: Sequence[str]
    lengths: Sequence[int]
    batches: Sequence[int]
    budget: int
    steps: int
    kernel: str

    def settings(self) -> Iterator[Setting]:
        """All combinations that exist: DynamicCache and StaticCache know FullKV only."""
        for length in self.lengths:
            for batch in self.batches:
                for method in self.methods:
                    for mode in self.modes:
                        if mode not in FULLKV_ONLY or method == "fullkv":
                            yield Setting(method, mode, length, batch, self.budget, self.steps, self.kernel)


def latencies(model: PreTrainedModel, grid: Grid, bandwidth: float, scores: object) -> list[dict[str, Any]]:
    """A flat record per combination; one that does not fit the memory says so in ``error``."""
    return [
        _guarded(setting, lambda s: record([measure(model, s, bandwidth, scores)])[0])
        for setting in grid.settings()
    ]


def rates(model: PreTrainedModel, grid: Grid, samples: int, scores: object) -> list[dict[str, Any]]:
    """Samples per second of each combination, in the same form."""
    return [
        _guarded(
            setting,
            lambda s: {
                **asdict(s),
                "samples_per_s": samples_per_second(model, s, grid.steps, samples, scores),
            },
        )
        for setting in grid.settings()
        if setting.mode != "static"
    ]


def _guarded(setting: Setting, run: Any) -> dict[str, Any]:
    try:
        return run(setting)
    except torch.OutOfMemoryError as error:
        message = f"out of memory: {str(error).splitlines()[0]}"
    torch.cuda.empty_cache()  # here the failed attempt's tensors are gone
    return {**asdict(setting), "error": message}
