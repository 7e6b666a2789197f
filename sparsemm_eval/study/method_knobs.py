"""Which settings take part in which method: the others are dropped, so that no two cells are the same run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsemm_eval.config import knobs_in_use, needs_of
from sparsemm_eval.methods import fullkv
from sparsemm_eval.methods.base import Knob, Style
from sparsemm_eval.methods.registry import all_knobs, method_named, methods, scores
from sparsemm_eval.model.families.registry import ANY_FAMILY, families
from sparsemm_eval.pruning.registry import SETTING, pruners, pruning_knobs

#: The method that the others are compared with.
REFERENCE = fullkv.METHOD.name
#: model_args that a study sets elsewhere, and where.
ELSEWHERE = {
    "method": "methods:",
    "budget": "budgets:",
    "batch_size": "batch_size: of the study",
    "max_batch_size": "batch_size: of the study",
    "journal": "nothing: every cell has a journal of its own",
    "stats_dir": "nothing: every cell has a folder of its own for it",
    "reference": "nothing: the FullKV cell of the same model and tasks is the reference",
}


def elsewhere() -> Mapping[str, str]:
    """``ELSEWHERE`` and all seeds, which studies list under ``seeds:``."""
    return {**ELSEWHERE, **{name: "seeds:" for name, knob in all_knobs().items() if knob.draws}}


def knobs_of(method: str, score: str | None = None, prune: str | None = None) -> Mapping[str, Knob]:
    """The knobs that change a run of a method, under its own score or another one, and with a pruner."""
    rule = method_named(method)
    return knobs_in_use(rule, scores().get(score) if rule.evicts else None, pruners().get(prune))


def seed_of(method: str, score: str | None = None) -> str | None:
    """The model_arg that a method's seed goes to; None where nothing is drawn."""
    return next((name for name, knob in knobs_of(method, score).items() if knob.draws), None)


def is_reference(method: str, model_args: Mapping[str, Any]) -> bool:
    """Whether a cell is one that others are compared with: nothing is evicted, pruned or masked."""
    return method == REFERENCE and SETTING not in model_args


def needs_head_scores(method: str, score: str | None = None) -> bool:
    """Whether a head-score table takes part."""
    rule = method_named(method)
    return "head_scores" in needs_of(rule, scores().get(score) if rule.evicts else None)


def takes_part(knob: str, method: str, family: str, score: Any = None, prune: Any = None) -> bool:
    """Whether a model_arg can change a run of this method, model family, score and pruner."""
    if knob in {**all_knobs(), **pruning_knobs()}:
        return knob in knobs_of(method, score, prune)
    if knob == "score":
        return method_named(method).evicts
    if knob == "head_scores":
        return needs_head_scores(method, score)
    if knob in ("min_pixels", "max_pixels") and family != ANY_FAMILY:
        return bool(families()[family].pixel_limits)
    return True


def title_of(method: str) -> str:
    """The method's name as papers write it; of a method that is not known here, its own name."""
    return methods()[method].title if method in methods() else method


def style_of(method: str) -> Style:
    """How the method looks in figures."""
    return methods()[method].style if method in methods() else Style()
