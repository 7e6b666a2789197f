"""CAKE: layers share the budget by how spread and how changing their attention is."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from sparsemm_eval.checks import LARGEST, NonNegative, Positive
from sparsemm_eval.methods.base import WINDOW, Knob, Method, PromptView, Score, Style
from sparsemm_eval.methods.prompt_attention import attention_rows
from sparsemm_eval.methods.window_attention import KERNEL_SIZE, smooth

Temperature = Annotated[
    Positive, Field(ge=0.1, description="a number >= 0.1")
]  # powers that are still numbers
SPREAD = Knob("cake_tau1", 1.6, Temperature, "τ1: layers count by entropy of attention to the power 1/τ1")
CHANGE = Knob("cake_tau2", 0.4, Temperature, "τ2: and by its variance over the window to the power 1/τ2")
GAMMA = Knob("cake_gamma", 200.0, NonNegative, "γ: weight of a position's variance beside its mean attention")
CASCADING = Knob(
    "cascading", True, bool, "whether layers are cut again as later ones report, or all at the end"
)


def _statistics(view: PromptView) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per prompt: entropy and variance of the layer's attention, [2], and scores, float32 [K, n]."""

    def of_prompt(one: PromptView) -> tuple[torch.Tensor, torch.Tensor]:
        config, past = view.config, max(one.length - view.config.window, 0)
        scores = torch.full((one.kv_heads, one.length), torch.inf, device=one.key.device)
        entropy, change = scores.new_zeros(2)
        for head, attention in attention_rows(one, past, one.length):
            attention = attention[..., :past]
            entropy = entropy - (attention * (attention + 1e-10).log()).sum()
            variance = attention.var(1) if attention.shape[1] > 1 else torch.zeros_like(attention[:, 0])
            change = change + variance.sum()
            pooled = smooth(
                (attention.mean(1) + config.cake_gamma * variance)[None], config.kernel_size, "avg"
            )
            scores[head, :past] = pooled[0].mean(0)
        return torch.stack([entropy, change]), scores

    return view.once("cake", lambda: [of_prompt(one) for one in view.rows()])


def attention_and_change(view: PromptView) -> torch.Tensor:
    """Mean of the window's attention plus ``cake_gamma`` times its variance, smoothed: float32 [B, K, N]."""
    scores = iter(_statistics(view))
    return view.by_row(lambda one: next(scores)[1])


def by_preference(view: PromptView, scores: torch.Tensor) -> torch.Tensor:
    """int64 [layer + 1, B, K]: all heads of a layer keep the same number.

    The rule of antgroup/cakekv c4675ce (cake/utils.py, adjust_budgets). After each layer the whole budget is
    shared among the layers seen so far, and every layer is cut to its part; what it gave up never comes back,
    so that the total can end below the budget. With ``cascading=false`` everything is held until the last
    layer has reported. As in the source, a prompt of up to budget + window tokens is not cut.
    """
    preferences = view.across_layers("cake", list)
    preferences.append(preferences_of(view))
    rows = [
        _targets(view, [layer[row] for layer in preferences], length, mean)
        for row, (length, mean) in enumerate(
            zip(view.fewest.tolist(), view.mean_lengths.tolist(), strict=True)
        )
    ]
    return torch.tensor(rows).T[..., None].expand(-1, -1, view.kv_heads)


def preferences_of(view: PromptView) -> list[float]:
    """E ** (1 / τ1) * V ** (1 / τ2) of every prompt: entropy E and variance V of the layer's attention."""
    powers = 1 / view.config.cake_tau1, 1 / view.config.cake_tau2
    pairs = [one.tolist() for one, _ in _statistics(view)]
    return [entropy ** powers[0] * change ** powers[1] for entropy, change in pairs]


def _targets(view: PromptView, preferences: list[float], length: int, mean: float) -> list[int]:
    config, cap = view.config, length - view.config.window
    if mean <= config.budget + config.window or not (config.cascading or len(preferences) == view.layers):
        return [LARGEST] * len(preferences)  # all there is
    total, of_all = view.base * view.layers, sum(preferences)
    wanted = [int(one / of_all * total) if of_all else total // len(preferences) for one in preferences]
    excess = sum(max(one - cap, 0) for one in wanted)
    wanted = _shared([min(one, cap) for one in wanted], excess, cap)
    wanted = _shared(wanted, total - sum(wanted), cap)
    return [min(one, cap) + config.window for one in wanted]


def _shared(wanted: list[int], rest: int, cap: int) -> list[int]:
    """Give the rest to layers below the cap, or take it from those that have some, evenly; once."""
    some = [layer for layer, one in enumerate(wanted) if (one < cap if rest > 0 else one > 1)]
    if not some or not rest:
        return wanted
    each, more = divmod(abs(rest), len(some))
    sign = 1 if rest > 0 else -1
    given = {layer: sign * (each + (place < more)) for place, layer in enumerate(some)}
    return [max(one + given.get(layer, 0), 0) for layer, one in enumerate(wanted)]


METHOD = Method(
    name="cake",
    title="CAKE",
    paper="Qin et al., ICLR 2025, arXiv:2503.12491",
    meaning="layers share the budget by entropy and variance of their attention",
    score=Score(
        "cake",
        attention_and_change,
        "attention of the observation window and its variance",
        (WINDOW, KERNEL_SIZE, GAMMA),
    ),
    allocate=by_preference,
    # the layers' shares follow from the same statistics whatever the score is
    knobs=(KERNEL_SIZE, GAMMA, SPREAD, CHANGE, CASCADING),
    needs=("all_layers",),
    style=Style("#ef6c00", "^"),
)
