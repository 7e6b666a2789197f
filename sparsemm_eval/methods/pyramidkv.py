"""PyramidKV: lower layers keep more; all heads of a layer keep the same number."""

from __future__ import annotations

import torch

from sparsemm_eval.checks import Count
from sparsemm_eval.methods.apportion import SURPLUS, water_fill
from sparsemm_eval.methods.base import Knob, Method, PromptView, Style
from sparsemm_eval.methods.published import sparsemm_table
from sparsemm_eval.methods.window_attention import WINDOW_ATTENTION

PYRAMID_BETA = Knob("pyramid_beta", 20, Count, "β: the last layer has 1/β of the mean beside the window")


def by_layer(view: PromptView, scores: torch.Tensor) -> torch.Tensor:
    """An arithmetic descent over layers from 2 - 1/beta to 1/beta of the budget beside the window.

    The official rule rounds the step between layers down, so the layers' mean can lie above the budget: up to
    15 % above it on 7B models.
    """
    entries = _filled if view.config.surplus == "redistribute" else _descent
    return view.for_all_heads([entries(view, view.layer, int(length)) for length in view.fewest])


def _descent(view: PromptView, layer: int, length: int) -> int:
    window = view.config.window
    low = view.base // view.config.pyramid_beta
    high = 2 * view.base - low
    if high >= length - window:  # no layer can hold more than the prompt: flatten the pyramid
        high = max(length - window, 0)
        low = 2 * view.base - high
    step = (high - low) // (view.layers - 1) if view.layers > 1 else 0
    top = high if view.layers > 1 else view.base
    return top - layer * step + window


def _filled(view: PromptView, layer: int, length: int) -> int:
    """What a layer has beyond the prompt goes to the other layers."""

    def fill() -> torch.Tensor:
        nominal = [_descent(view, one, length) for one in range(view.layers)]
        weight = torch.tensor([max(n - view.config.window, 0) for n in nominal], dtype=torch.float64)
        floor = torch.full_like(weight, view.config.window)
        return water_fill(floor, weight, cap=length, total=view.config.budget * view.layers)

    return int(view.once_per_prompt(("pyramidkv", length), fill)[layer])


METHOD = Method(
    name="pyramidkv",
    title="PyramidKV",
    paper="Cai et al., 2024, arXiv:2406.02069",
    meaning="lower layers keep more",
    score=WINDOW_ATTENTION,
    allocate=by_layer,
    knobs=(SURPLUS, PYRAMID_BETA),
    published=sparsemm_table(256, (0.65, 0.48, 0.62, 0.53, 0.65)),
    style=Style("#00795a", "^"),
)
