"""CompressionConfig: one frozen, validated record with every knob of the compression."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.scores.table import HeadScores

METHODS = ("fullkv", "snapkv", "pyramidkv", "adakv", "sparsemm", "random")
POOLINGS = ("avg", "max")
GQA_REDUCTIONS = ("mean", "max")
SURPLUS_RULES = ("drop", "redistribute")


@dataclass(frozen=True)
class CompressionConfig:
    """How a prompt's KV cache is cut after prefill.

    Attributes
    ----------
    method : str
        ``fullkv``, ``snapkv``, ``pyramidkv``, ``adakv``, ``sparsemm`` or ``random``.
    budget : int
        Mean number of KV entries per KV head over all layers, observation window included. Larger than
        ``window``, except for ``fullkv``, which ignores it.
    window : int
        Observation window w: the last w prompt tokens score the others and are always kept.
    ratio : float
        rho in [0, 1]: the uniform share of what is left after the window (``sparsemm`` and ``random``).
    kernel_size : int
        Odd width of the pooling that smooths importance over positions.
    pooling : str
        ``avg`` or ``max``.
    gqa : str
        Importance of a KV head from the query heads of its group: ``mean`` or ``max``.
    surplus : str
        A head's budget beyond the prompt: ``drop`` (as the paper's code does; the effective budget is then
        below the nominal one) or ``redistribute`` to heads that can use it.
    head_scores : str, Path, HeadScores or None
        Needed by ``sparsemm``: a name, the path of a file, or a table.
    adakv_floor : float
        Share of a head's budget that AdaKV guarantees, in [0, 1].
    pyramid_beta : int
        PyramidKV's beta: the last layer's budget is 1/beta of the mean.
    seed : int
        Seed of the ``random`` head scores.

    Raises
    ------
    ConfigError
        If a value is out of range; the message names the argument, the value and the valid range.
    """

    method: str = "sparsemm"
    budget: int = 256
    window: int = 32
    ratio: float = 0.1
    kernel_size: int = 5
    pooling: str = "avg"
    gqa: str = "mean"
    surplus: str = "drop"
    head_scores: str | Path | HeadScores | None = None
    adakv_floor: float = 0.2
    pyramid_beta: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        _choice("method", self.method, METHODS)
        _choice("pooling", self.pooling, POOLINGS)
        _choice("gqa", self.gqa, GQA_REDUCTIONS)
        _choice("surplus", self.surplus, SURPLUS_RULES)
        _integer("window", self.window, 1)
        _integer("budget", self.budget, 1)
        _integer("kernel_size", self.kernel_size, 1)
        _integer("pyramid_beta", self.pyramid_beta, 1)
        _integer("seed", self.seed, 0)
        _share("ratio", self.ratio)
        _share("adakv_floor", self.adakv_floor)
        if self.kernel_size % 2 == 0:
            raise ConfigError("kernel_size", self.kernel_size, "an odd integer >= 1")
        if self.compresses and self.budget <= self.window:
            raise ConfigError(
                "budget",
                self.budget,
                f"an integer > window ({self.window}): the window is part of the budget and is always kept",
            )
        if not isinstance(self.head_scores, (str, Path, HeadScores, type(None))):
            raise ConfigError("head_scores", self.head_scores, "a name, a path, a HeadScores table or None")

    @property
    def compresses(self) -> bool:
        """Whether the method may evict anything at all."""
        return self.method != "fullkv"

    def replace(self, **changes: Any) -> CompressionConfig:
        """A copy with some knobs changed, validated again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All knobs as JSON types; a table of head scores becomes ``"sha256:…"`` of its content."""
        record = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if isinstance(self.head_scores, HeadScores):
            record["head_scores"] = f"sha256:{self.head_scores.digest()}"
        elif self.head_scores is not None:
            record["head_scores"] = str(self.head_scores)
        return record

    def digest(self) -> str:
        """Hex SHA-256 over all knobs; it names a run. Equal configs have equal digests."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def _choice(argument: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(argument, value, "one of " + ", ".join(choices))


def _integer(argument: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(argument, value, f"an integer >= {minimum}")


def _share(argument: str, value: object) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= 1:
        raise ConfigError(argument, value, "a number in [0, 1]")
