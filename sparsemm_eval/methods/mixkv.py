"""MixKV: importance mixed with key diversity, head by head, by how redundant the head's keys are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field

from sparsemm_eval.checks import one_of
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.methods.base import WINDOW, Knob, Method, PromptView, Score, Style
from sparsemm_eval.methods.keydiff import mean_direction
from sparsemm_eval.methods.snapkv import uniform
from sparsemm_eval.methods.window_attention import GQA, KERNEL_SIZE, POOLING, window_attention

EPSILON = 1e-8
THIRD = 0.33  # the source's


def _table(value: Any) -> Any:
    """``online``, or a table [L][K] given as such or in a JSON file, as tuples."""
    if value == "online":
        return value
    try:
        rows = json.loads(Path(value).expanduser().read_text()) if isinstance(value, (str, Path)) else value
        table = tuple(tuple(float(number) for number in row) for row in rows)
    except (OSError, TypeError) as error:  # pydantic only turns ValueErrors into refusals
        raise ValueError(str(error)) from error
    if len({len(row) for row in table}) != 1 or not all(0 <= one <= 1 for row in table for one in row):
        raise ValueError("no table")
    return table


REDUNDANCY = Knob(
    "redundancy",
    "online",
    Annotated[
        Any,
        BeforeValidator(_table),
        Field(description="`online`, or a JSON file with numbers in [0, 1], a list of KV heads per layer"),
    ],
    "weight of diversity per head: `online`, of the prompt's own keys, or a table averaged elsewhere",
)
MIX = Knob(
    "mix",
    "headwise",
    one_of("headwise", "even", "diversity", "norm"),
    "`headwise`, as published; `even` thirds; `diversity` alone; importance and value `norm` alone",
)


def mixed(view: PromptView, scores: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Importance, value norm and key diversity of the positions before the window: float32 [B, K, N].

    The rule of xuyang-liu16/MixKV 850ec26 (mixkv/mixkv_utils.py) on any method's budgets, which follow from
    importance alone. With r the mean cosine similarity of different keys of a head: r * diversity + (1 - r) *
    (importance + value norm), where the last two are scaled to [0, 1] and then to the mean of importance.

    The source reads r from a table that was averaged offline, of Qwen2-VL whatever the model is, and throws
    the value of the prompt itself away; the paper describes the latter. Here r is ``redundancy=online``
    unless a table is given, as published numbers had. A constant value norm gives NaN there and counts for
    nothing here.
    """
    view.once_per_prompt("redundancy fits", lambda: _fits(view))
    return view.by_row(_mixed, scores)


def _fits(view: PromptView) -> None:
    table = view.config.redundancy
    if table != "online" and (len(table), len(table[0])) != (view.layers, view.kv_heads):
        found, wanted = f"[{len(table)}, {len(table[0])}]", f"[{view.layers}, {view.kv_heads}]"
        raise ConfigError("redundancy", found, f"a table {wanted}, of the model's layers and KV heads")


def _mixed(view: PromptView, importance: torch.Tensor) -> torch.Tensor:
    config, past = view.config, view.length - view.config.window
    if past <= 0:
        return importance
    key = view.key[0].float()
    mean = mean_direction(key)
    importance, target = importance[:, :past], importance[:, :past].mean(-1, keepdim=True)

    def scaled(raw: torch.Tensor) -> torch.Tensor:
        return raw * (target / (raw.mean(-1, keepdim=True) + EPSILON))

    diversity = -(torch.nn.functional.normalize(key[:, :past], dim=-1) * mean).sum(-1)
    low, high = diversity.aminmax(dim=-1, keepdim=True)
    diversity = scaled((diversity - low) / (high - low + EPSILON))
    norm = torch.linalg.vector_norm(view.value[0, :, :past].float(), dim=-1)
    low, high = norm.aminmax(dim=-1, keepdim=True)
    norm = scaled(((norm - low) / (high - low)).nan_to_num(0.0))
    if config.mix == "headwise":
        share = _redundancy(view, mean)
        mix = share * diversity + (1 - share) * (importance + norm)
    else:
        mix = {
            "even": THIRD * (diversity + importance + norm),
            "diversity": diversity,
            "norm": importance + norm,
        }[config.mix]
    return torch.nn.functional.pad(mix, (0, config.window), value=torch.inf)


def _redundancy(view: PromptView, mean: torch.Tensor) -> torch.Tensor:
    """float32 [K, 1]; mean: [K, 1, D]."""
    table, count = view.config.redundancy, view.length
    if table == "online":
        return (count * mean.square().sum(-1) - 1) / (count - 1)
    return torch.tensor(table[view.layer], dtype=torch.float32, device=mean.device)[:, None]


METHOD = Method(
    name="mixkv",
    title="MixKV",
    paper="Liu et al., ICLR 2026",
    meaning="SnapKV's budgets, filled by importance and key diversity",
    score=Score(
        "mixkv",
        window_attention,
        "attention of the observation window, value norm and key diversity, mixed per head",
        (WINDOW, KERNEL_SIZE, POOLING, GQA, REDUNDANCY, MIX),
        ("values",),
        select=mixed,
    ),
    allocate=uniform,
    style=Style("#2e7d32", "H"),
)
