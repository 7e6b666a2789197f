"""StreamingLLM: attention sinks and the most recent tokens, whatever they hold."""

from __future__ import annotations

import torch

from sparsemm_eval.checks import Natural
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.methods.base import Knob, Method, PromptView, Settings, Style
from sparsemm_eval.methods.snapkv import uniform

SINKS = Knob("sinks", 4, Natural, "first prompt tokens that are always kept")


def recency(view: PromptView) -> torch.Tensor:
    """The later, the better: float32 [B, K, N]."""
    position = torch.arange(view.length, dtype=torch.float32, device=view.key.device)
    return position.expand(view.batch, view.kv_heads, -1)


def sinks(view: PromptView) -> torch.Tensor:
    """The first ``sinks`` tokens of every prompt: bool [B, N]."""
    return view.everything & (view.everything.cumsum(-1) <= view.config.sinks)


def fits(config: Settings) -> None:
    """Refuse a budget without room for the sinks and one recent token."""
    if config.budget <= config.sinks:
        raise ConfigError(
            "budget", config.budget, f"an integer > sinks ({config.sinks}), which are part of it"
        )


METHOD = Method(
    name="streamingllm",
    title="StreamingLLM",
    paper="Xiao et al., ICLR 2024, arXiv:2309.17453",
    meaning="first tokens (`sinks`) and last tokens; `sinks=0` is a window only",
    score=recency,
    allocate=uniform,
    protect=sinks,
    knobs=(SINKS,),
    check=fits,
    style=Style("#7a5c00", "p"),
)
