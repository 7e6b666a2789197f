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
    """The entries of one layer that are kept.

    Attributes
    ----------
    mask : torch.Tensor or None
        bool [B, K, N]; None where nothing is left out and nothing is padding.
    most : int
        How many those are in all, or more than that.
    exact : bool
        Whether ``most`` is how many they are.
    whole : bool
        Whether no layer of the prompt leaves anything out.
    """

    mask: torch.Tensor | None
    most: int
    exact: bool
    whole: bool = False

    def counted(self, key: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The mask, and how many entries it marks of keys [B, K, N, D]: int64 [B, K] on the CPU."""
        batch, kv_heads, length, _ = key.shape
        if self.mask is None:
            return None, torch.full((batch, kv_heads), length)
        return self.mask, self.mask.sum(-1).cpu()


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
        replace(view, config=config, layer=layer, layers=len(views), shared=shared)
        for layer, view in enumerate(views)
    ]
    if views and "head_scores" in config.needs:
        if not isinstance(config.head_scores, HeadScores):
            raise ConfigError("head_scores", config.head_scores, f"a HeadScores table, for {config.method}")
        config.head_scores.check_fits(len(views), views[0].heads)
    masks = [keep_layer(view).mask for view in views]
    return [everything(view) if mask is None else mask for view, mask in zip(views, masks, strict=True)]


def everything(view: PromptView) -> torch.Tensor:
    """bool [B, K, N]: all positions but padding."""
    return view.everything[:, None].expand(-1, view.kv_heads, -1)


@torch.no_grad()  # which entries are kept has no gradient
def keep_layer(view: PromptView) -> Kept:
    """``keep`` of one layer, whose view has its config.

    Reads nothing back from a GPU that depends on the layer, unless the method does.
    """
    config, lengths = view.config, view.lengths
    # a prompt that fits into the mean budget is left whole: nothing would be gained by cutting it
    if not config.evicts or view.longest <= config.budget:
        mask = None if view.valid is None else everything(view)
        return Kept(mask, int(lengths.sum()) * view.kv_heads, exact=True, whole=True)
    scores = _shaped("score", view, config.score_in_use.function(view), (view.kv_heads, view.length))
    wanted = _shaped("allocate", view, config.rule.allocate(view, scores), (view.kv_heads,))
    protected, least = _protected(view)
    device, known = scores.device, wanted.device.type == "cpu"
    lengths = lengths[:, None].to(wanted.device)
    wanted = torch.minimum(torch.where(lengths <= config.budget, lengths, wanted), lengths)
    if known and least is not None:
        count = torch.maximum(wanted, least)
        most = int(count.sum())
        count = count.to(device)
    else:
        # what a layer's heads share is theirs together, give or take what rounding does to each
        most = min(view.batch * view.kv_heads * (config.budget + 1), view.batch * view.kv_heads * view.length)
        if least is None:
            count = torch.maximum(wanted.to(device), protected.sum(-1))
            most = int(count.sum())
        else:
            count = torch.maximum(wanted.to(device), least.to(device))
    # what is protected comes first, whatever its score
    scores = scores.clamp(max=torch.finfo(scores.dtype).max).masked_fill(protected, torch.inf)
    if view.valid is not None:
        scores = scores.masked_fill(~everything(view), -torch.inf)
    order = scores.argsort(dim=-1, descending=True, stable=True)  # the earlier position wins a tie
    rank = view.once_per_prompt("ranks", lambda: torch.arange(view.length, device=device))
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, rank < count[..., None])
    exact = known and least is not None
    if view.valid is not None:
        mask, exact = mask & everything(view), False
    return Kept(mask, most, exact)


def _protected(view: PromptView) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What is always kept, bool [B, 1 or K, N], and how many those are on the CPU where no layer differs."""

    def find() -> tuple[torch.Tensor, torch.Tensor | None]:
        found = view.config.rule.protect(view)
        if found.ndim == 3:
            return found & everything(view), None
        found = (found & view.everything)[:, None]
        return found, found.sum(-1).cpu()

    if view.shared.get("protected", (None, None))[1] is None:
        view.shared["protected"] = find()
    return view.shared["protected"]


def _shaped(part: str, view: PromptView, found: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if tuple(found.shape) != (view.batch, *shape):
        wanted = "[B, K, N]" if len(shape) == 2 else "[B, K]"
        remedy = f"{wanted}, here {(view.batch, *shape)}"
        raise ConfigError(f"{part} of method {view.config.method}", tuple(found.shape), remedy)
    return found
