"""Scores that papers report for the models and tasks this package runs, each with its source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

VICUNA = "llava-hf/llava-v1.6-vicuna-7b-hf"
MISTRAL = "llava-hf/llava-v1.6-mistral-7b-hf"
QWEN2VL = "Qwen/Qwen2-VL-7B-Instruct"

SPARSEMM = "SparseMM (Wang et al., ICCV 2025)"
MIXKV = "MixKV (ICLR 2026), table 1"


@dataclass(frozen=True)
class Published:
    """One published score.

    Attributes
    ----------
    source : str
    pretrained : str
        The checkpoint's hub id.
    method, task : str
        Under our names.
    budget : int or None
        Nominal; None for FullKV.
    score : float
        On the scale of our metric of the task.
    """

    source: str
    pretrained: str
    method: str
    task: str
    budget: int | None
    score: float


_BENCHMARKS = ("docvqa_val", "ocrbench", "textvqa_val", "chartqa", "textcaps_val")

_SPARSEMM_256 = {
    "fullkv": (0.68, 0.52, 0.65, 0.55, 0.73),
    "sparsemm": (0.68, 0.52, 0.65, 0.54, 0.73),
    "snapkv": (0.64, 0.46, 0.62, 0.50, 0.65),
    "pyramidkv": (0.65, 0.48, 0.62, 0.53, 0.65),
    "adakv": (0.65, 0.48, 0.62, 0.49, 0.66),
}

# In percent, for budgets 256, 128 and 64.
_MIXKV_BUDGETS = (256, 128, 64)
_MIXKV = {
    (MISTRAL, "snapkv"): ((59.7, 55.2, 47.3), (45.0, 39.0, 31.9), (63.5, 61.0, 57.1), (50.2, 47.5, 42.7)),
    (MISTRAL, "sparsemm"): ((61.6, 60.8, 57.6), (51.9, 50.7, 46.2), (65.1, 64.7, 62.8), (51.9, 51.2, 48.9)),
    (QWEN2VL, "snapkv"): ((88.0, 80.1, 66.5), (77.3, 71.9, 62.4), (80.3, 77.5, 69.9), (81.3, 79.6, 75.5)),
    (QWEN2VL, "sparsemm"): ((93.5, 91.5, 84.9), (81.2, 79.0, 74.3), (82.0, 81.6, 77.3), (82.0, 81.5, 80.1)),
}

#: Published ablations; not every setting of theirs is known here, so they stand beside no row of ours.
ABLATION_NOTES = (
    f"{SPARSEMM}: MMBench from budget 512 to 48: window only 81.3 to 67.2, with the uniform share "
    "81.5 to 73.9, with visual scores 81.5 to 77.9.",
)
RHO_NOTES = (
    f"{SPARSEMM}: LLaVA-NeXT-Mistral-7B without the uniform share (ρ = 0) falls from 0.519 to 0.145.",
)
MASK_NOTES = (
    f"{SPARSEMM}: masking the top 5 % visual heads costs 20 % on OCRBench and 15 % on TextVQA, masking "
    "random heads less than 3 %.",
)


def _all() -> Iterator[Published]:
    for method, scores in _SPARSEMM_256.items():
        budget = None if method == "fullkv" else 256
        for task, score in zip(_BENCHMARKS, scores, strict=True):
            yield Published(SPARSEMM, VICUNA, method, task, budget, score)
    for (pretrained, method), tasks in _MIXKV.items():
        for task, scores in zip(_BENCHMARKS, tasks, strict=False):
            for budget, score in zip(_MIXKV_BUDGETS, scores, strict=True):
                yield Published(MIXKV, pretrained, method, task, budget, round(score / 100, 4))


PUBLISHED: tuple[Published, ...] = tuple(_all())


def find(pretrained: str, method: str, task: str, budget: int | None) -> list[Published]:
    """Published scores of exactly this checkpoint, method, task and nominal budget; usually one or none."""
    wanted = (pretrained, method, task, budget)
    return [row for row in PUBLISHED if (row.pretrained, row.method, row.task, row.budget) == wanted]
