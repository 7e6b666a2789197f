"""What a method is: a score, an allocation and protected positions, with knobs, paper and looks."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch

from sparsemm_eval.checks import checked, whole
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.scores.table import Head, HeadScores

Value = TypeVar("Value")

#: What a method may ask for beside queries and keys; only what is asked for is computed or kept alive.
NEEDS = {
    "head_scores": "a table of head scores: ``view.config.head_scores``",
    "values": "the values: ``view.value``",
    "images": "which positions are image tokens: ``view.images``",
    "output_weight": "the weight of the attention's output projection: ``view.output_weight``",
    "rotation": "how RoPE turned queries and keys: ``view.rotation``",
    "repeat_attention": "a pass over the context repeated: ``view.received``, before the prompt is prefilled",
    "answer_attention": "a pass that answers with the whole cache: ``view.received``, before the prompt",
    "all_layers": "to say again, after every layer, what earlier layers keep",
}
#: Passes over the model before the prompt is prefilled; a method has at most one.
FIRST_PASSES = frozenset({"repeat_attention", "answer_attention"})


class Settings(Protocol):
    """What a method reads of a CompressionConfig; its knobs are attributes, too."""

    method: str
    budget: int
    window: int
    head_scores: HeadScores | Any


@dataclass(frozen=True, eq=False)
class Rotation:
    """RoPE as a prompt's queries and keys went through it.

    Attributes
    ----------
    cos, sin : torch.Tensor
        [B or 1, N, D] (half-split convention: channel i turns with channel i + D / 2).
    future : callable
        ``count -> (cos, sin)``, float32 [B or 1, D]: means over the ``count`` positions after the prompt.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    future: Callable[[int], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, eq=False)
class PromptView:
    """What a method may look at: one layer of a batch of prompts, padded on the left.

    Attributes
    ----------
    query, key : torch.Tensor
        [B, H, N, D] and [B, K, N, D] after RoPE; query head h belongs to KV head ``h // (H / K)``.
    value : torch.Tensor, optional
        [B, K, N, D], for methods that need ``values``.
    valid : torch.Tensor, optional
        bool [B, N]; False marks left padding. None: there is no padding.
    images : torch.Tensor, optional
        bool [B, N], True for image tokens, for methods that need ``images``.
    output_weight : torch.Tensor, optional
        [hidden, H * D], for methods that need ``output_weight``.
    rotation : Rotation, optional
        For methods that need ``rotation``.
    received : torch.Tensor, optional
        float32 [L, B, K, N]: attention that every prompt entry of every layer received in a first pass, for
        methods that need one.
    scaling : float, optional
        Factor on attention scores; None: ``D ** -0.5``.
    layer, layers : int
        This layer's index and how many there are.
    config : CompressionConfig, optional
        The method's settings; ``keep`` puts them here.
    shared : dict
        What is computed once for all layers of a prompt, see ``once_per_prompt``.
    layer_lengths : torch.Tensor, optional
        int64 [layers, B] on the CPU: prompt tokens of every layer, padding left out. None: this layer's.
    across : dict, optional
        Like ``shared``, where layers hold different parts of the prompt and ``shared`` is for some of them.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor | None = None
    valid: torch.Tensor | None = None
    images: torch.Tensor | None = None
    output_weight: torch.Tensor | None = None
    scaling: float | None = None
    rotation: Rotation | None = None
    received: torch.Tensor | None = None
    layer: int = 0
    layers: int = 1
    config: Settings | None = None
    shared: dict[Hashable, Any] = field(default_factory=dict)
    layer_lengths: torch.Tensor | None = None
    across: dict[Hashable, Any] | None = None
    _memo: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def batch(self) -> int:
        """B."""
        return self.key.shape[0]

    @property
    def heads(self) -> int:
        """H, query heads."""
        return self.query.shape[1]

    @property
    def kv_heads(self) -> int:
        """K."""
        return self.key.shape[1]

    @property
    def length(self) -> int:
        """N, padding included."""
        return self.key.shape[2]

    @property
    def everything(self) -> torch.Tensor:
        """bool [B, N]: all positions but padding."""
        if self.valid is not None:
            return self.valid
        size, device = (self.batch, self.length), self.key.device
        ones = self.once_per_prompt("everything", lambda: torch.ones(size, dtype=torch.bool, device=device))
        return ones.to(device)  # layers may lie on several devices

    @property
    def lengths(self) -> torch.Tensor:
        """int64 [B] on the CPU: prompt tokens, padding left out."""

        def count() -> torch.Tensor:
            return torch.full((self.batch,), self.length) if self.valid is None else self.valid.sum(-1).cpu()

        return self.once_per_prompt("lengths", count)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt, padding left out."""
        return self.once_per_prompt("longest", lambda: int(self.lengths.max()))

    @property
    def fewest(self) -> torch.Tensor:
        """int64 [B] on the CPU: tokens of the layer that has fewest, for budgets of all layers together."""
        return self.lengths if self.layer_lengths is None else self.layer_lengths.min(0).values

    @property
    def mean_lengths(self) -> torch.Tensor:
        """[B] on the CPU: tokens of a layer in the mean."""
        return self.lengths if self.layer_lengths is None else self.layer_lengths.double().mean(0)

    @property
    def base(self) -> int:
        """Mean entries per KV head beside the observation window."""
        return self.config.budget - self.config.window

    def for_all_heads(self, per_row: Sequence[int]) -> torch.Tensor:
        """B numbers -> int64 [B, K], the same for every KV head of a row."""
        return torch.tensor(per_row, dtype=torch.int64)[:, None].expand(-1, self.kv_heads)

    def rows(self) -> Iterator[PromptView]:
        """Every prompt of the batch as a view of its own, without padding."""
        for row, length in enumerate(self.lengths.tolist()):
            here, tokens = slice(row, row + 1), slice(self.length - length, None)

            def cut(tensor: torch.Tensor | None, *index: Any) -> torch.Tensor | None:
                return None if tensor is None else tensor[index]

            yield replace(
                self,
                query=self.query[here, :, tokens],
                key=self.key[here, :, tokens],
                value=cut(self.value, here, slice(None), tokens),
                valid=None,
                images=cut(self.images, here, tokens),
                rotation=None if self.rotation is None else _row_of(self.rotation, row, tokens),
                received=cut(self.received, slice(None), here, slice(None), tokens),
                layer_lengths=cut(self.layer_lengths, slice(None), here),
                shared=self.once_per_prompt(("row", row), dict),
            )

    def by_row(self, function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
        """float32 [B, K, N] from a function of one prompt: it sees no padding, nor another row.

        Parameters
        ----------
        function : callable
            ``(view of one prompt, its part of every tensor) -> [K, n]``.
        *tensors : torch.Tensor
            [B, K, N], or [B, K] where they have no positions.
        """
        shape = (self.batch, self.kv_heads, self.length)
        found = torch.zeros(shape, dtype=torch.float32, device=self.key.device)
        for row, view in enumerate(self.rows()):
            tokens = slice(self.length - view.length, None)
            parts = (tensor[row] if tensor.ndim == 2 else tensor[row, :, tokens] for tensor in tensors)
            found[row, :, tokens] = function(view, *parts)
        return found

    def once(self, name: Hashable, compute: Callable[[], Value]) -> Value:
        """A result that several parts of a method use, computed once for this layer."""
        if name not in self._memo:
            self._memo[name] = compute()
        return self._memo[name]

    def across_layers(self, name: Hashable, compute: Callable[[], Value]) -> Value:
        """What all layers of a prompt write to and read, also where they hold different parts of it."""
        return (self.shared if self.across is None else self.across).setdefault(name, compute())

    def once_per_prompt(self, name: Hashable, compute: Callable[[], Value]) -> Value:
        """A result that does not depend on the layer, computed once for all layers of a prompt."""
        if name not in self.shared:
            self.shared[name] = compute()
        return self.shared[name]


def _row_of(rotation: Rotation, row: int, tokens: slice) -> Rotation:
    row = min(row, len(rotation.cos) - 1)  # one row of angles may serve all prompts
    here = slice(row, row + 1)

    def future(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(mean[here] if len(mean) > 1 else mean for mean in rotation.future(count))

    return Rotation(rotation.cos[here, tokens], rotation.sin[here, tokens], future)


@dataclass(frozen=True)
class Knob:
    """A number or choice that changes what a method keeps.

    Attributes
    ----------
    name : str
        In ``CompressionConfig``, model_args, studies and results alike.
    default : Any
    kind : Any
        A type of ``sparsemm_eval.checks``.
    meaning : str
        A few words for tables.
    draws : bool
        Whether it is a seed, over which studies average.
    """

    name: str
    default: Any
    kind: Any = field(compare=False)
    meaning: str
    draws: bool = False

    def __post_init__(self) -> None:
        checked(self.kind, self.name, self.default)


@dataclass(frozen=True)
class Score:
    """A way to say which entries of a prompt are worth keeping; it goes with any method's budgets.

    Attributes
    ----------
    name : str
        A value of the knob ``score``.
    function : callable
        ``PromptView -> float32 [B, K, N]``: the larger, the more worth keeping. Among equal scores the
        earlier position wins; what is said of padding and of protected positions plays no part.
    meaning : str
    knobs : tuple of Knob
    needs : tuple of str
        Of ``NEEDS``.
    select : callable or None
        ``(view, scores, count int64 [B, K]) -> float32 [B, K, N]``: by what a head chooses its entries once
        it knows how many, where that is not ``function`` itself, by which budgets are shared.
    negative : bool
        Whether a score can lie below zero, so that sums of scores mean nothing.
    """

    name: str
    function: Callable[[PromptView], torch.Tensor]
    meaning: str = ""
    knobs: tuple[Knob, ...] = ()
    needs: tuple[str, ...] = ()
    select: Callable[[PromptView, torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    negative: bool = False


@dataclass(frozen=True)
class Style:
    """How a method looks in every figure: colour ``#rrggbb`` and matplotlib's marker."""

    color: str = "#5f6b7a"
    marker: str = "o"


@dataclass(frozen=True)
class Published:
    """A score that a paper reports for this method.

    Attributes
    ----------
    source : str
    pretrained : str
        The checkpoint's hub id.
    task : str
        lmms-eval's name.
    budget : int or None
        Nominal; None where nothing is evicted.
    score : float
        On the scale of our metric of the task.
    """

    source: str
    pretrained: str
    task: str
    budget: int | None
    score: float


#: Of every method that protects the observation window, whatever scores the others.
WINDOW = Knob("window", 32, whole(1), "last prompt tokens, always kept, whose attention scores the others")


def last_tokens(view: PromptView, count: int) -> torch.Tensor:
    """The last tokens of every prompt: bool [B, N]."""
    position = torch.arange(view.length, device=view.key.device)
    return (position >= view.length - count).expand(view.batch, -1)


def last_window(view: PromptView) -> torch.Tensor:
    """The observation window: bool [B, N]."""
    return last_tokens(view, view.config.window)


def nothing(view: PromptView) -> torch.Tensor:
    """No position is kept whatever its score: bool [B, N]."""
    return last_tokens(view, 0)


Allocate = Callable[[PromptView, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Method:
    """A published method: which entries of a prompt every KV head keeps.

    Score, allocation and protected positions are independent: ``score=`` puts another score into any method.

    Attributes
    ----------
    name : str
        Lower case; model names are ``<family>_<name>``.
    title, paper, meaning : str
        The name as papers write it, where it was published, and one sentence of what it does.
    score : Score, callable or None
        A callable is a score of the method's own name. None: nothing is scored, since nothing is evicted.
    allocate : callable or None
        ``(view, scores) -> int64 [B, K]``: entries every KV head of this layer keeps, protected ones
        included, before they are cut to the prompt. On the CPU; where it depends on the prompt's content, it
        may stay on the scores' device, so that nothing waits for a GPU, and a row has at most
        ``K * (budget + 1)`` then. A method that needs ``all_layers`` returns int64 [layer + 1, B, K]: what
        this layer and all before it keep as of now; no layer gets back what it has given up. None: everything
        is kept.
    protect : callable
        ``view -> bool [B, N]``, for all layers of a prompt, or ``[B, K, N]``, of this layer: always kept,
        part of the budget.
    mask : callable or None
        ``(head scores, config) -> [(layer, query head), …]``: heads whose attention is switched off.
    knobs : tuple of Knob
        Beside those of the score.
    check : callable or None
        Raises ConfigError for settings that are right one by one, but not together.
    per_query_head : callable or None
        ``config -> bool``: whether every query head of a GQA group keeps entries of its own, as if the model
        had no groups.
    merge : callable or None
        ``(view, kept: bool [B, K, N]) -> (key, value)``, [B, K, N, D] each: what is stored of the kept
        entries, where evicted ones leave something in them.
    needs : tuple of str
        Of ``NEEDS``.
    published : tuple of Published
    style : Style
    """

    name: str
    title: str
    paper: str = ""
    meaning: str = ""
    score: Score | Callable[[PromptView], torch.Tensor] | None = None
    allocate: Allocate | None = None
    protect: Callable[[PromptView], torch.Tensor] = last_window
    mask: Callable[[HeadScores, Settings], list[Head]] | None = None
    knobs: tuple[Knob, ...] = ()
    check: Callable[[Settings], None] | None = None
    per_query_head: Callable[[Settings], bool] | None = None
    merge: Callable[[PromptView, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
    needs: tuple[str, ...] = ()
    published: tuple[Published, ...] = field(default=(), repr=False)
    style: Style = Style()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise ConfigError(
                "name", self.name, "a method's name of a-z, 0-9 and _ that begins with a letter"
            )
        if self.protect is last_window and self.allocate is not None and WINDOW not in self.knobs:
            object.__setattr__(self, "knobs", (WINDOW, *self.knobs))
        if self.score is not None and not isinstance(self.score, Score):
            object.__setattr__(self, "score", Score(self.name, self.score, self.meaning))
        if (self.score is None) != (self.allocate is None):
            raise ConfigError(
                "allocate", self.allocate, f"with a score, and only then (method {self.name!r})"
            )
        for need in (*self.needs, *(self.score.needs if self.score else ())):
            if need not in NEEDS:
                raise ConfigError("needs", need, f"of {', '.join(NEEDS)}, in method {self.name!r}")
        if not re.fullmatch(r"#[0-9A-Fa-f]{6}", self.style.color):
            raise ConfigError("color", self.style.color, "#rrggbb")

    @property
    def evicts(self) -> bool:
        """Whether anything may be left out, so that the method has a budget."""
        return self.allocate is not None
