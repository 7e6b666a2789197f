"""RaggedCache: a transformers cache whose KV heads keep different numbers of entries."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from sparsemm_eval.cache.dense_store import DenseStore
from sparsemm_eval.cache.pruned_prompt import PrunedPrompt
from sparsemm_eval.cache.ragged_store import RESERVE, RaggedArena, RaggedStore, block_size
from sparsemm_eval.cache.statistics import CacheStats
from sparsemm_eval.config import CompressionConfig
from sparsemm_eval.errors import ConfigError, UnsupportedError
from sparsemm_eval.kernels.dispatch import choose
from sparsemm_eval.methods.base import PromptView, Rotation
from sparsemm_eval.methods.keep import Kept, keep_layer, per_query_head

if TYPE_CHECKING:
    from sparsemm_eval.cache.segment_store import SegmentArena, SegmentStore

Arena: TypeAlias = "RaggedArena | SegmentArena"
Store: TypeAlias = "RaggedStore | SegmentStore"
DEFAULT_RESERVE = 64  # generated tokens to make room for when nobody says how many will come


def new_arena(config: CompressionConfig, num_layers: int, kernel: str) -> Arena:
    """Memory for samples one after the other, for the kernel ``torch`` or ``triton``."""
    if kernel == "torch":
        return RaggedArena(config, num_layers)
    from sparsemm_eval.cache.segment_store import SegmentArena  # imports Triton

    return SegmentArena(num_layers)


@dataclass
class Shared:
    """What all layers of a cache have in common.

    Attributes
    ----------
    config : CompressionConfig
        With a resolved HeadScores table where the method needs one.
    num_layers : int
    reserve : int
        Generated tokens to make room for.
    kernel : str
        Of the attention over ragged entries: ``auto``, ``torch`` or ``triton``.
    arena : Arena or None
        Where the entries lie, if they outlive the cache, or the kernel wants them together.
    images : torch.Tensor or None
        bool [B, N]: which positions of the prompts are image tokens, for methods that ask.
    rotation : Rotation or None
        How RoPE turns the prompts, for methods that ask.
    received : torch.Tensor or None
        float32 [L, B, K, N]: of a first pass over the prompts, for methods that ask.
    evidence : torch.Tensor or None
        bool [B, N]: positions of the prompts of which each KV head's kept ones are counted, if asked for.
    pruned : PrunedPrompt or None
        Where image tokens of the prompt are left out.
    once : dict
        What methods compute once for all layers; see ``PromptView``.
    held : list of RaggedLayer
        Layers that may still be cut further, before they are stored.
    held_peak : int
        Most bytes of keys and values while layers were held.
    """

    config: CompressionConfig
    num_layers: int
    reserve: int
    kernel: str = "auto"
    arena: Arena | None = None
    images: torch.Tensor | None = None
    rotation: Rotation | None = None
    received: torch.Tensor | None = None
    evidence: torch.Tensor | None = None
    pruned: PrunedPrompt | None = None
    once: dict[Hashable, Any] = field(default_factory=dict)
    held: list[RaggedLayer] = field(default_factory=list)
    held_peak: int = 0


def _refused(reason: str) -> Callable[..., None]:
    def method(self: RaggedLayer, *args: Any, **kwargs: Any) -> None:
        raise UnsupportedError(reason)

    method.__doc__ = "Refused."
    return method


class RaggedLayer(CacheLayerMixin):
    """One decoder layer's entries.

    The first ``update`` is the prefill: it hands the dense keys and values back, and ``compress``, called
    right after the layer's attention, stores what is kept and lets go of the rest. Every later ``update``
    appends one token.
    """

    is_compileable = False
    is_sliding = False

    def __init__(self, shared: Shared, layer: int):
        super().__init__()
        self.shared, self.layer = shared, layer
        self.seen = 0  # tokens the model has been given, padding and what was pruned included
        self.store: Store | DenseStore | None = None
        self.prompt_lengths: torch.Tensor | None = None  # [B]
        self.entry_bytes = 0  # bytes of one key and one value
        self.prompt_width = 0  # prompt tokens, padding and what was pruned included
        self.dense_bytes = 0  # of the whole prompt, alive while this layer is compressed
        self.stored_bytes = 0  # right after compression
        self.copies = 1  # segments per KV head: the group's size where query heads keep entries of their own
        self.evidence_kept: torch.Tensor | None = None  # int64 [B, K] on the layer's device, where asked for
        self._kv_heads = 0
        # until all layers have reported, where a method shares a budget among them: what is kept as of now,
        # and which of these entries are marked, bool [B, K, entries]
        self._held: Kept | None = None
        self._marked: torch.Tensor | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Part of the cache interface; nothing can be set up before the prompt is known."""
        self.is_initialized = True

    @property
    def is_prefilled(self) -> bool:
        """Whether the prompt has been compressed."""
        return self.store is not None

    @property
    def is_dense(self) -> bool:
        """Whether nothing was evicted, so that plain attention over dense keys applies."""
        return isinstance(self.store, DenseStore)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take new keys and values [B, K, T, D].

        Returns the dense keys and values during prefill and of a layer that evicted nothing; else the new
        token's own, which ``attend`` adds to the store.

        Raises
        ------
        UnsupportedError
            For a second chunk of prompt, or when the model runs outside ``compress``.
        """
        self._check_tokens(key_states.shape[2])
        self.is_initialized = True
        self.seen += key_states.shape[2] + (0 if self.is_prefilled else self._dropped)
        if self.is_dense:
            return self.store.append(key_states, value_states)
        if not self.is_prefilled:
            self.keys, self.values = key_states, value_states
        return key_states, value_states

    @property
    def _pruned(self) -> PrunedPrompt | None:
        pruned = self.shared.pruned
        return None if pruned is None or self.layer < pruned.layer else pruned

    @property
    def _dropped(self) -> int:
        """Columns of the prompt that do not reach this layer."""
        return 0 if self._pruned is None else self._pruned.dropped

    def _check_tokens(self, tokens: int) -> None:
        if self.is_prefilled and tokens != 1:
            raise UnsupportedError(
                f"{tokens} tokens at once after the prompt was compressed: chunked prefill, "
                "continued chats and assisted decoding need evicted entries; give the whole prompt at once"
            )
        if not self.is_prefilled and self.seen:
            raise UnsupportedError("a RaggedCache only works inside `with compress(model, config)`")

    def compress(
        self,
        query: torch.Tensor,
        valid: torch.Tensor | None,
        scaling: float | None,
        output_weight: torch.Tensor | None = None,
    ) -> None:
        """Store what the method keeps of the prompt and let go of the dense keys and values.

        Parameters
        ----------
        query : torch.Tensor
            [B, H, N, D] after RoPE.
        valid : torch.Tensor, optional
            bool [B, N]; False marks left padding.
        scaling : float, optional
            Attention scale.
        output_weight : torch.Tensor, optional
            [hidden, H * D], for methods that need it.
        """
        key, value = self.keys, self.values
        self.keys = self.values = None
        if self.layer == 0 and valid is not None and bool((valid[:, :-1] & ~valid[:, 1:]).any()):
            raise UnsupportedError(
                "padding inside or right of a prompt: pad on the left (padding_side='left')"
            )
        shared, config, pruned = self.shared, self.shared.config, self._pruned
        images, received = shared.images, shared.received
        if pruned is not None:
            images = None if images is None else pruned.remaining_images
            # of prompts that fit the budget nothing was received
            received = pruned.of_all_layers(received) if received is not None and received.numel() else None
        # layers may lie on several devices
        images, received = (part if part is None else part.to(key.device) for part in (images, received))
        view = per_query_head(
            PromptView(
                query,
                key,
                value if "values" in config.needs else None,
                valid,
                images,
                output_weight,
                scaling,
                shared.rotation,
                received,
                self.layer,
                shared.num_layers,
                config,
                shared.once if pruned is None else pruned.once,  # its lengths are others
                None if shared.pruned is None else shared.pruned.layer_lengths(shared.num_layers),
                shared.once,
            )
        )
        self.prompt_lengths, self._kv_heads = view.lengths, key.shape[1]
        self.entry_bytes = 2 * key.shape[3] * key.element_size()
        self.prompt_width = key.shape[2] + self._dropped
        self.dense_bytes = 2 * key.numel() * key.element_size()
        kept = keep_layer(view)
        self.copies = view.kv_heads // key.shape[1]
        if kept.whole and self.copies > 1:  # nothing is gained by copies of the same entries
            kept, self.copies = kept.every(self.copies), 1
        marked = self._evidence(view)
        if marked is not None:
            self.evidence_kept = self._per_kv_head(kept.count_of(marked))
        if kept.whole:
            self._finish(key, value, kept)
            return
        if self.copies > 1:
            self.dense_bytes *= 1 + self.copies
            key, value = view.key, value.repeat_interleave(self.copies, 1)
        if config.rule.merge is not None:
            self.dense_bytes *= 2
            key, value = config.rule.merge(view, kept.mask(key.shape[2]))
        if "all_layers" not in config.rule.needs:
            self._finish(key, value, kept)
            return
        self._hold(key, value, kept, marked)
        for layer, count in zip(shared.held, kept.earlier, strict=False):
            layer._trim(count)
        if self.layer == shared.num_layers - 1:
            for layer in shared.held:
                layer._release()
            shared.held.clear()

    def _evidence(self, view: PromptView) -> torch.Tensor | None:
        marked = self.shared.evidence
        width = view.length if self._pruned is None else self._pruned.everything.shape[1]
        if marked is not None and tuple(marked.shape) != (view.batch, width):
            remedy = f"bool [B, N], here {(view.batch, width)}"
            raise ConfigError("evidence", tuple(marked.shape), remedy)
        if marked is None:
            return None
        marked = marked if self._pruned is None else self._pruned.rows(marked)
        return marked.to(view.key.device)

    def _per_kv_head(self, count: torch.Tensor) -> torch.Tensor:
        """Of segments' counts int64 [B, K * copies], the mean over each KV head's, rounded down: [B, K]."""
        return count.unflatten(-1, (-1, self.copies)).sum(-1) // self.copies

    def _finish(self, key: torch.Tensor, value: torch.Tensor, kept: Kept) -> None:
        self.store = self._stored(key, value, kept)
        self.stored_bytes = self.store.nbytes

    def _hold(self, key: torch.Tensor, value: torch.Tensor, kept: Kept, marked: torch.Tensor | None) -> None:
        """Keep the entries that are kept as of now, best first, until all layers have reported."""
        self.keys, self.values, self._held = key, value, kept
        if marked is not None:  # of the entries as they will lie
            self._marked = marked[:, None].expand(-1, key.shape[1], -1).gather(-1, kept.order)
        self.shared.held.append(self)
        before = sum(layer.held_bytes for layer in self.shared.held)
        self._select(kept.order, kept.count)
        self.shared.held_peak = max(self.shared.held_peak, before + self.held_bytes)

    @property
    def held_bytes(self) -> int:
        """Bytes of keys and values before they are stored."""
        return 0 if self.keys is None else 2 * self.keys.numel() * self.keys.element_size()

    def _trim(self, count: torch.Tensor) -> None:
        if int(count.max()) < self.keys.shape[2]:
            self._select(self._held.order, count)
        else:
            self._held = replace(self._held, count=count, most=int(count.sum()))

    def _select(self, order: torch.Tensor, count: torch.Tensor) -> None:
        order = order[..., : int(count.max())]
        index = order[..., None].expand(-1, -1, -1, self.keys.shape[3])
        self.keys, self.values = self.keys.gather(2, index), self.values.gather(2, index)
        place = torch.arange(order.shape[-1], device=order.device).expand_as(order)  # now in that order
        self._held = Kept(place, count, int(count.sum()))

    def _release(self) -> None:
        key, value, held = self.keys, self.values, self._held
        self.keys = self.values = self._held = None
        if self.evidence_kept is not None:
            left = torch.arange(self._marked.shape[-1]) < held.count[..., None]
            count = (self._marked & left.to(self._marked.device)).sum(-1)
            self.evidence_kept, self._marked = self._per_kv_head(count), None
        self.store = self._stored(key, value, held)
        self.stored_bytes = self.store.nbytes
        rest = sum(layer.held_bytes for layer in self.shared.held)
        stored = sum(layer.store.nbytes for layer in self.shared.held if layer.store is not None)
        peak = rest + stored + 2 * key.numel() * key.element_size()
        self.shared.held_peak = max(self.shared.held_peak, peak)

    @property
    def kept(self) -> torch.Tensor:
        """int64 [B, K] on the CPU: entries kept of the prompt, in all segments of a KV head."""
        if self.is_dense:
            return self.prompt_lengths[:, None].expand(-1, self._kv_heads)
        return self.store.counts.view(-1, self._kv_heads, self.copies).sum(-1)

    def _stored(self, key: torch.Tensor, value: torch.Tensor, kept: Kept) -> Store | DenseStore:
        shared, room = self.shared, min(self.shared.reserve, RESERVE)
        if kept.whole:
            return DenseStore(key, value, shared.reserve)
        if choose(shared.kernel, key.device) == "triton":
            if shared.arena is None:
                shared.arena = new_arena(shared.config, shared.num_layers, "triton")
            shared.arena.fill(self.layer, key, value, kept, room)
            return shared.arena.stores[self.layer]
        counts = kept.count.cpu()
        whole = bool((counts == self.prompt_lengths[:, None]).all())
        if whole and self.copies == 1 and not shared.held:  # what was held lies in another order
            return DenseStore(key, value, shared.reserve)
        store = RaggedStore(block_size(float(counts.double().mean())))
        store.fill(key, value, kept, room)
        return store

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Add one token's [B, K, 1, D], then its attention [B, H, 1, D] over all entries -> [B, 1, H, D]."""
        arena = self.shared.arena
        if arena is not None and self.layer == 0 and self.generated > arena.room:
            arena.make_room(arena.room + RESERVE)
        return self._attend(query, key, value, scaling)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        if self.copies > 1:
            key, value = (part.repeat_interleave(self.copies, 1) for part in (key, value))
        return self.store.attend(query, key, value, scaling)

    @property
    def generated(self) -> int:
        """Tokens appended after the prompt."""
        return self.seen - self.prompt_width

    def get_seq_length(self) -> int:
        """Tokens seen, not entries kept: positions continue from here."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(length, offset) of the mask over all tokens seen."""
        return self.seen + int(query_length), 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.20

    def reset(self) -> None:
        """Forget everything."""
        self.__init__(self.shared, self.layer)

    reorder_cache = _refused("beam search needs entries that were evicted for another beam: use num_beams=1")
    crop = _refused("assisted decoding takes tokens back, which needs evicted entries: leave it out")
    batch_repeat_interleave = _refused("a compressed cache cannot be repeated: repeat the prompts instead")
    batch_select_indices = _refused("rows of a compressed cache cannot be selected: run the rows you need")
    offload = _refused("a compressed cache is not offloaded: it is small already")


class RaggedCache(Cache):
    """All layers of one batch.

    Parameters
    ----------
    config, num_layers, reserve, kernel, arena
        See ``Shared``; more room is taken as tokens come.
    """

    layer_type: type[RaggedLayer] = RaggedLayer

    def __init__(
        self,
        config: CompressionConfig,
        num_layers: int,
        reserve: int = DEFAULT_RESERVE,
        kernel: str = "auto",
        arena: Arena | None = None,
    ):
        self.shared = Shared(config, num_layers, reserve, kernel, arena)
        super().__init__(layers=[self.layer_type(self.shared, layer) for layer in range(num_layers)])

    def reset(self) -> None:
        """Forget everything."""
        shared = self.shared
        shared.images = shared.evidence = shared.rotation = shared.received = shared.pruned = None
        shared.once.clear()
        shared.held.clear()
        shared.held_peak = 0
        super().reset()

    @property
    def is_prefilled(self) -> bool:
        """Whether every layer has compressed its prompt."""
        return all(layer.is_prefilled for layer in self.layers)

    @property
    def prompt_width(self) -> int:
        """Prompt tokens, padding included."""
        return self.layers[0].prompt_width

    def stats(self) -> CacheStats:
        """What is kept and how many bytes that takes, measured on the stores themselves."""
        if not self.is_prefilled:
            raise UnsupportedError("no statistics before the prompt has been through the model")
        earlier, prefill_peak = 0, 0
        for layer in self.layers:
            prefill_peak = max(prefill_peak, earlier + layer.dense_bytes + layer.stored_bytes)
            earlier += layer.stored_bytes
        end = sum(layer.store.nbytes for layer in self.layers)
        first, evidence, pruned = self.layers[0], self.shared.evidence, self.shared.pruned
        found = [layer.evidence_kept for layer in self.layers if layer.evidence_kept is not None]
        return CacheStats(
            kept=torch.stack([layer.kept for layer in self.layers]),
            prompt_lengths=first.prompt_lengths if pruned is None else pruned.lengths,
            layer_lengths=torch.stack([layer.prompt_lengths for layer in self.layers]),
            entry_bytes=torch.tensor([layer.entry_bytes for layer in self.layers]),
            generated=first.generated,
            kv_bytes_peak=max(prefill_peak, self.shared.held_peak, end),
            kv_bytes_allocated=end,
            # read back at once, after the last token
            evidence_kept=torch.stack([part.to(found[0].device) for part in found]).cpu() if found else None,
            evidence_tokens=evidence.sum(-1).cpu() if found else None,
        )
