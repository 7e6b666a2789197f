"""Which entries are kept: score, allocate, protect, and each head's best entries within its number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.methods.base import PromptView, Settings


@dataclass(frozen=True)
class Kept:
    """The entries of one layer that are kept: of every KV head, the first ``count`` of its ``order``.

    Attributes
    ----------
    order : torch.Tensor or None
        int64 [B, K, N]: positions. None where nothing is left out and nothing is padding.
    count : torch.Tensor
        int64 [B, K]. On the CPU where it is known without waiting for a GPU, else on the order's device.
    most : int
        Entries in all; where ``count`` is not on the CPU, a number that they do not exceed.
    whole : bool
        Whether no layer of the prompt leaves anything out.
    earlier : tuple of torch.Tensor
        int64 [B, K] for every earlier layer: what is left of it, where that changes with later layers.
    """

    order: torch.Tensor | None
    count: torch.Tensor
    most: int
    whole: bool = False
    earlier: tuple[torch.Tensor, ...] = ()

    def mask(self, length: int) -> torch.Tensor:
        """bool [B, K, N], for N = ``length``."""
        if self.order is None:
            return torch.ones(*self.count.shape, length, dtype=torch.bool)
        rank = torch.arange(length, device=self.order.device)
        chosen = rank < self.count.to(self.order.device)[..., None]
        return torch.zeros(chosen.shape, dtype=torch.bool, device=chosen.device).scatter_(
            -1, self.order, chosen
        )

    def every(self, step: int) -> Kept:
        """Of every ``step`` KV heads, which keep the same, the first."""
        order = None if self.order is None else self.order[:, ::step]
        count = self.count[:, ::step]
        return replace(self, order=order, count=count, most=int(count.sum()))

    def count_of(self, marked: torch.Tensor) -> torch.Tensor:
        """How many of the marked positions, bool [B, N], every KV head keeps: int64 [B, K] on their device.

        Nothing is read back from a GPU.
        """
        if self.order is None:
            return marked.sum(-1, keepdim=True).expand(-1, self.count.shape[1])
        rank = torch.arange(marked.shape[1], device=marked.device)
        chosen = rank < self.count.to(marked.device, non_blocking=True)[..., None]
        ordered = marked[:, None].expand(-1, self.count.shape[1], -1).gather(-1, self.order)
        return (ordered & chosen).sum(-1)


def keep(config: Settings, views: Sequence[PromptView]) -> list[torch.Tensor]:
    """Mark the prompt entries that every KV head keeps: what the cache does, layer by layer. Pure.

    Parameters
    ----------
    config : CompressionConfig
        With a HeadScores table in ``head_scores`` where the method needs one.
    views : sequence of PromptView
        One per layer, in order.

    Returns
    -------
    list of torch.Tensor
        bool [B, K, N] per layer, on the views' device.

    Raises
    ------
    ConfigError
        If head scores are needed and are no table, or the method breaks its contract.
    HeadScoreError
        If the table does not fit [layers, H].
    """
    shared: dict = {}
    views = [
        per_query_head(replace(view, config=config, layer=layer, layers=len(views), shared=shared))
        for layer, view in enumerate(views)
    ]
    if views and "head_scores" in config.needs:
        if not isinstance(config.head_scores, HeadScores):
            raise ConfigError("head_scores", config.head_scores, f"a HeadScores table, for {config.method}")
        config.head_scores.check_fits(len(views), views[0].heads)
    kept = [keep_layer(view) for view in views]
    if kept and kept[-1].earlier:
        kept = [*map(_trimmed, kept, kept[-1].earlier), kept[-1]]
    return [one.mask(view.length).to(view.key.device) for one, view in zip(kept, views, strict=True)]


def per_query_head(view: PromptView) -> PromptView:
    """The view of a model without groups, for methods whose query heads keep entries of their own."""
    rule, group = view.config.rule, view.heads // view.kv_heads
    if group == 1 or rule.per_query_head is None or not rule.per_query_head(view.config):
        return view
    value = None if view.value is None else view.value.repeat_interleave(group, 1)
    received = None if view.received is None else view.received.repeat_interleave(group, 2)
    return replace(view, key=view.key.repeat_interleave(group, 1), value=value, received=received)


@torch.no_grad()  # which entries are kept has no gradient
def keep_layer(view: PromptView) -> Kept:
    """``keep`` of one layer, whose view has its config.

    Reads nothing back from a GPU that depends on the layer, unless the method does.
    """
    config, lengths = view.config, view.lengths[:, None]
    fits = (view.mean_lengths <= config.budget)[:, None]
    if getattr(config, "prompt_share", None) is not None:  # in place of the budget
        fits = torch.zeros_like(fits)
    # a prompt that fits into the mean budget is left whole: nothing would be gained by cutting it
    if not config.evicts or bool(fits.all()):
        return _everything(view)
    scores = _shaped("score", view, config.score_in_use.function(view), (view.kv_heads, view.length))
    protected, least = _protected(view)

    def limited(
        wanted: torch.Tensor, least: torch.Tensor, lengths: torch.Tensor, fits: torch.Tensor
    ) -> torch.Tensor:
        if wanted.device != least.device:  # to where the numbers are that depend on the prompt's content
            place = scores.device
            numbers = (wanted, least, lengths, fits)
            wanted, least, lengths, fits = (part.to(place, non_blocking=True) for part in numbers)
        wanted = torch.minimum(torch.where(fits, lengths, wanted), lengths)
        return torch.maximum(wanted, least).expand(-1, view.kv_heads)

    limits, found, earlier = (least, lengths, fits), config.rule.allocate(view, scores), ()
    if "all_layers" in config.rule.needs:
        before = view.across_layers("limits", list)
        before.append(limits)
        counts = [
            limited(_shaped("allocate", view, one, (view.kv_heads,)), *own)
            for one, own in zip(found, before, strict=True)
        ]
        held = view.across_layers("counts", list)
        held[:] = [*map(torch.minimum, held, counts[:-1]), counts[-1]]
        earlier, count = tuple(held[:-1]), held[-1]
    else:
        count = limited(_shaped("allocate", view, found, (view.kv_heads,)), *limits)
    # what a layer's heads share by content is theirs together, give or take what rounding does to each
    heads = view.batch * view.kv_heads
    most = int(count.sum()) if count.device.type == "cpu" else heads * min(config.budget + 1, view.length)
    if config.score_in_use.select is not None:
        scores = config.score_in_use.select(view, scores, count)
        scores = _shaped("select", view, scores, (view.kv_heads, view.length))
    # what is protected comes first and padding last, whatever their scores
    limits = torch.finfo(scores.dtype)
    scores = scores.nan_to_num(nan=limits.min, posinf=limits.max, neginf=limits.min)
    scores = scores.masked_fill_(protected.to(scores.device), torch.inf)
    if view.valid is not None:
        scores.masked_fill_(~view.everything[:, None], -torch.inf)
    order = scores.argsort(dim=-1, descending=True, stable=True)  # the earlier position wins a tie
    return Kept(order, count, most, earlier=earlier)


def _trimmed(kept: Kept, count: torch.Tensor) -> Kept:
    return replace(kept, count=count, most=int(count.sum()))


def _everything(view: PromptView) -> Kept:
    count = view.lengths[:, None].expand(-1, view.kv_heads)
    order = None
    if view.valid is not None:  # padding is on the left: turned to the end

        def turned() -> torch.Tensor:
            padding = (view.length - view.lengths).to(view.key.device)
            position = torch.arange(view.length, device=view.key.device)
            return ((position + padding[:, None]) % view.length)[:, None]

        order = view.once_per_prompt("turned", turned).to(view.key.device).expand(-1, view.kv_heads, -1)
    return Kept(order, count, int(count.sum()), whole=True)


def _protected(view: PromptView) -> tuple[torch.Tensor, torch.Tensor]:
    """What is always kept, bool [B, 1 or K, N], and how many those are, int64 [B, 1 or K].

    Of what is the same for all layers, the number is on the CPU.
    """
    if "protected" in view.shared:
        return view.shared["protected"]
    found = view.config.rule.protect(view)
    if found.ndim == 3:
        found = found & view.everything[:, None]
        return found, found.sum(-1)
    found = (found & view.everything)[:, None]
    return view.once_per_prompt("protected", lambda: (found, found.sum(-1).cpu()))


def _shaped(part: str, view: PromptView, found: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if tuple(found.shape) != (view.batch, *shape):
        wanted = "[B, K, N]" if len(shape) == 2 else "[B, K]"
        remedy = f"{wanted}, here {(view.batch, *shape)}"
        raise ConfigError(f"{part} of method {view.config.method}", tuple(found.shape), remedy)
    return found
