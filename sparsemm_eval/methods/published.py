"""The tables of papers that methods here are compared in; each method's file holds its own row."""

from __future__ import annotations

from collections.abc import Sequence

from sparsemm_eval.methods.base import Published

VICUNA = "llava-hf/llava-v1.6-vicuna-7b-hf"
MISTRAL = "llava-hf/llava-v1.6-mistral-7b-hf"
QWEN2VL = "Qwen/Qwen2-VL-7B-Instruct"
SPARSEMM = "SparseMM (Wang et al., ICCV 2025)"
MIXKV = "MixKV (ICLR 2026), table 1"

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

_BENCHMARKS = ("docvqa_val", "ocrbench", "textvqa_val", "chartqa", "textcaps_val")
_MIXKV_BUDGETS = (256, 128, 64)


def sparsemm_table(budget: int | None, scores: Sequence[float]) -> tuple[Published, ...]:
    """A row of SparseMM's main table: LLaVA-NeXT-Vicuna-7B at budget 256, one score per benchmark."""
    pairs = zip(_BENCHMARKS, scores, strict=True)
    return tuple(Published(SPARSEMM, VICUNA, task, budget, score) for task, score in pairs)


def mixkv_table(pretrained: str, scores: Sequence[Sequence[float]]) -> tuple[Published, ...]:
    """A row of MixKV's table 1: per benchmark the scores in percent at budgets 256, 128 and 64."""
    return tuple(
        Published(MIXKV, pretrained, task, budget, round(score / 100, 4))
        for task, at_budgets in zip(_BENCHMARKS, scores, strict=False)
        for budget, score in zip(_MIXKV_BUDGETS, at_budgets, strict=True)
    )
