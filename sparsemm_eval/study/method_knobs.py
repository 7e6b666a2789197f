"""Which settings take part in which method: the others are dropped, so that no two cells are the same run."""

from __future__ import annotations

from dataclasses import dataclass

_OBSERVATION = ("window", "kernel_size", "pooling", "gqa", "surplus")


@dataclass(frozen=True)
class MethodUse:
    """What one method of a study depends on.

    Attributes
    ----------
    name : str
        Suffix of the model names.
    budget : bool
        Whether it is crossed with the budgets.
    knobs : tuple of str
        model_args that change it, beside those that change every run.
    seed : str or None
        The model_arg that its seed goes to; None where nothing is drawn.
    """

    name: str
    budget: bool = False
    knobs: tuple[str, ...] = ()
    seed: str | None = None


METHODS = {
    use.name: use
    for use in (
        MethodUse("fullkv"),
        MethodUse("snapkv", True, _OBSERVATION),
        MethodUse("pyramidkv", True, (*_OBSERVATION, "pyramid_beta")),
        MethodUse("adakv", True, (*_OBSERVATION, "adakv_floor")),
        MethodUse("sparsemm", True, (*_OBSERVATION, "ratio", "head_scores")),
        MethodUse("random", True, (*_OBSERVATION, "ratio"), seed="seed"),
        MethodUse("mask", knobs=("head_scores", "mask_ratio", "mask_mode")),
        MethodUse("mask_random", knobs=("head_scores", "mask_ratio", "mask_mode"), seed="mask_seed"),
    )
}
#: The method that the others are compared with.
REFERENCE = "fullkv"

_BY_METHOD = frozenset(knob for use in METHODS.values() for knob in use.knobs)
_BY_FAMILY = {"min_pixels": ("qwen2vl",), "max_pixels": ("qwen2vl",)}
FAMILIES = ("llava", "qwen2vl")
#: model_args that a study sets elsewhere, and where.
ELSEWHERE = {
    "method": "methods:",
    "budget": "budgets:",
    "seed": "seeds:",
    "mask_seed": "seeds:",
    "batch_size": "batch_size: of the study",
    "max_batch_size": "batch_size: of the study",
    "journal": "nothing: every cell has a journal of its own",
    "stats_dir": "nothing: every cell has a folder of its own for it",
    "reference": "nothing: the FullKV cell of the same model and tasks is the reference",
}


def takes_part(knob: str, method: str, family: str) -> bool:
    """Whether a model_arg can change a run of this method and model family."""
    if knob in _BY_METHOD:
        return knob in METHODS[method].knobs
    return family in _BY_FAMILY.get(knob, (family,))
