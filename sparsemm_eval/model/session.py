"""compress(model, config): the one place that touches a transformers model."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from sparsemm_eval import compat
from sparsemm_eval.cache.ragged_cache import DEFAULT_RESERVE, Arena, RaggedCache, new_arena
from sparsemm_eval.cache.static_cache import StaticCache
from sparsemm_eval.cache.statistics import CacheStats
from sparsemm_eval.config import CompressionConfig
from sparsemm_eval.decode import modes
from sparsemm_eval.decode import settings as generation_settings
from sparsemm_eval.decode.loop import DecodeLoop
from sparsemm_eval.decode.positions import recorded_positions
from sparsemm_eval.decode.step import RECOMPILE_LIMIT
from sparsemm_eval.errors import ConfigError, UnsupportedError
from sparsemm_eval.heads.scores.lookup import resolve
from sparsemm_eval.kernels import dispatch
from sparsemm_eval.methods.base import FIRST_PASSES
from sparsemm_eval.model.attention import ATTENTION, STATIC_ATTENTION, register
from sparsemm_eval.model.encoded_images import with_encoded_images
from sparsemm_eval.model.feed_forward import in_parts
from sparsemm_eval.model.first_pass import first_pass
from sparsemm_eval.model.flops import prefill_flops
from sparsemm_eval.model.image_pruning import ImagePruning
from sparsemm_eval.model.masked_heads import masked_heads
from sparsemm_eval.model.rotary import Rotary
from sparsemm_eval.model.text_decoder import TextDecoder, find_text_decoder, rotary_embedding


def compress(
    model: PreTrainedModel, config: CompressionConfig, *, decode: str = "eager", kernel: str = "auto"
) -> CompressionSession:
    """Compress the KV cache of everything the model generates inside a ``with`` block.

    Parameters
    ----------
    model : PreTrainedModel
        LLaVA-NeXT, Qwen2-VL, or a plain Llama, Mistral or Qwen2 model, loaded with
        ``attn_implementation="sdpa"``.
    config : CompressionConfig
        What to keep.
    decode : str
        ``eager``: ``generate`` as it is. ``compile``: it compiles the decode step (on a GPU; on a CPU the
        step runs as it is). ``graph``: an own loop, whose step is captured in a CUDA graph on a GPU.
        ``fused``: as graph, with the step compiled first, on a CPU too.
    kernel : str
        Of the attention over ragged entries: ``auto`` (Triton on CUDA, else torch), ``torch`` or ``triton``.

    Returns
    -------
    CompressionSession
        A context manager. When it exits, also after an exception, the model is as before.

    Raises
    ------
    ConfigError, HeadScoreError
        If the method needs head scores and there are none, or they do not fit the model; for an unknown mode
        or kernel.
    UnsupportedError
        If the model is of a kind that cannot be compressed, or cannot decode in that mode.

    Examples
    --------
    >>> with compress(model, CompressionConfig("snapkv", budget=128)) as session:  # doctest: +SKIP
    ...     tokens = model.generate(**inputs, max_new_tokens=64)
    ...     print(session.stats.effective_budget)
    """
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedError(
            f"a {type(model).__name__} is no PreTrainedModel. If it wraps one, compress the model inside: "
            "model.get_base_model() for peft (adapters stay active), model._orig_mod for torch.compile"
        )
    decoder = find_text_decoder(model)
    modes.check(decode, model)
    dispatch.choose(kernel, model.device)
    return CompressionSession(model, decoder, with_head_scores(config, model, decoder), decode, kernel)


def with_head_scores(
    config: CompressionConfig, model: PreTrainedModel, decoder: TextDecoder, name: str | None = None
) -> CompressionConfig:
    """The config with its head scores as a table that fits the model, where the method needs them.

    Parameters
    ----------
    name : str, optional
        To look scores up by; default: where the model was loaded from.

    Raises
    ------
    ConfigError, HeadScoreError
        If there are none, or they do not fit.
    """
    if "head_scores" not in config.needs:
        return config
    name = name or model.config.name_or_path or None
    if config.head_scores is None and name is None:
        remedy = f"a table, a file or a name: method {config.method!r} needs one"
        raise ConfigError("head_scores", None, remedy)
    scores = resolve(config.head_scores, name)
    scores.check_fits(decoder.num_layers, decoder.num_heads)
    return config.replace(head_scores=scores)


class CompressionSession:
    """A model under compression; made by ``compress``.

    Attributes
    ----------
    config : CompressionConfig
        With its head scores resolved to a table.
    masked : list of (layer, query head)
        Heads that the method masks.
    stats : CacheStats or None
        Of the last ``generate`` call.
    evidence : torch.Tensor or None
        bool [B, N], set before a call: prompt positions of which ``stats.evidence_kept`` counts those kept.
        It stays until it is set again.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        decoder: TextDecoder,
        config: CompressionConfig,
        decode: str = "eager",
        kernel: str = "auto",
    ):
        self.model, self.decoder, self.config = model, decoder, config
        self.decode, self.kernel = decode, kernel
        mask = config.rule.mask
        self.masked = [] if mask is None else mask(config.head_scores, config)
        self.pruning = None if config.pruner is None else ImagePruning(model, decoder, config)
        self.stats: CacheStats | None = None
        self.evidence: torch.Tensor | None = None
        self._arena: Arena | None = None
        self._loop = (
            DecodeLoop(model, rotary_embedding(model, decoder), compiled=decode == "fused")
            if modes.captures(decode)
            else None
        )
        self._undo = ExitStack()
        self._prefilled_at: float | None = None
        self._rotary: Rotary | None = None
        self._received: torch.Tensor | None = None
        self._compile_seconds: Callable[[], float] = float  # until the block is entered: 0.0

    def new_cache(self, max_new_tokens: int = DEFAULT_RESERVE) -> RaggedCache:
        """A fresh cache for a manual decode loop.

        ``max_new_tokens`` is a hint for how much room to make; with ``decode`` other than ``eager`` it is a
        limit, and a new cache puts an end to the one before.
        """
        layers = self.decoder.num_layers
        if self.decode == "eager":
            cache = RaggedCache(self.config, layers, max_new_tokens, self.kernel)
        else:
            compileable = self.decode == "compile"
            cache = StaticCache(self.config, layers, max_new_tokens, self.arena, compileable=compileable)
        cache.shared.evidence = self.evidence
        return cache

    @property
    def arena(self) -> Arena:
        """Memory of all samples in modes other than ``eager``."""
        if self._arena is None:
            kernel = dispatch.choose(self.kernel, self.model.device)
            self._arena = new_arena(self.config, self.decoder.num_layers, kernel)
        return self._arena

    @property
    def captures(self) -> int:
        """Decode steps recorded so far; on a CPU, how often one would have been."""
        return 0 if self._loop is None else self._loop.captures

    def __enter__(self) -> CompressionSession:
        text_config = self.decoder.config
        before = compat.attention_of(text_config)
        if before in (ATTENTION, STATIC_ATTENTION):
            raise UnsupportedError("the model is already inside a `with compress(...)` block")
        if before != "sdpa":
            raise UnsupportedError(
                f"attn_implementation={before!r}: prefill runs on SDPA, load the model with "
                "attn_implementation='sdpa' so that all methods are compared on the same kernel"
            )
        register()
        try:
            self._attach(text_config)
        except BaseException:
            self._undo.close()
            raise
        return self

    def _attach(self, text_config: PreTrainedConfig) -> None:
        if self.decode in ("compile", "fused"):
            self._undo.enter_context(compat.hooks_respected_by_compiled_code(RECOMPILE_LIMIT))
            self._undo.enter_context(compat.compiled_call_for_a_while(self.model))
            self._compile_seconds = self._undo.enter_context(compat.compile_clock())
        name = ATTENTION if self.decode == "eager" else STATIC_ATTENTION
        self._undo.enter_context(compat.attention_set_to(text_config, name))
        if "rotation" in self.config.needs:
            rotary = rotary_embedding(self.model, self.decoder)
            self._rotary = Rotary(rotary, self._undo.enter_context(recorded_positions(rotary)))
        for attention in self.decoder.attentions:
            hook = attention.register_forward_pre_hook(self._hand_over_cache_layer, with_kwargs=True)
            self._undo.callback(hook.remove)
        for hook in (
            self.model.register_forward_pre_hook(self._ensure_cache, with_kwargs=True),
            self.model.register_forward_hook(self._note_prefill),
        ):
            self._undo.callback(hook.remove)
        for hook in () if self.pruning is None else self.pruning.hooks():
            self._undo.callback(hook.remove)
        self._undo.enter_context(in_parts(self.decoder.feed_forwards))
        if self.masked:
            self._undo.enter_context(masked_heads(self.model, self.masked, self.config.mask_mode))
        self._wrap_generate()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _wrap_generate(self) -> None:
        """Shadow ``model.generate`` on this one object, so that each call gets a cache of its own."""
        original, own = self.model.generate, vars(self.model).get("generate")

        def generate(*args: Any, **kwargs: Any) -> Any:
            try:
                return self._generate(original, args, kwargs)
            finally:
                self._received = None
                if self.pruning is not None:
                    self.pruning.forget()

        self.model.generate = generate
        if own is None:
            self._undo.callback(delattr, self.model, "generate")
        else:  # somebody had shadowed it before
            self._undo.callback(setattr, self.model, "generate", own)

    def _generate(self, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.stats = None
        kwargs = {**dict(zip(inspect.signature(original).parameters, args, strict=False)), **kwargs}
        settings = kwargs.get("generation_config") or self.model.generation_config
        generation_settings.check(settings, kwargs)
        self._prefilled_at = None
        started, warmed_up = self._now(), self._warm_up_seconds()
        kwargs = with_encoded_images(self.model, kwargs)
        self._received = first_pass(self.model, self.decoder, self.config, original, kwargs)
        self._prefilled_at = None  # a first pass is part of the time to the first token
        if self.pruning is not None:
            kwargs = self.pruning.before_generate(kwargs)
        if self._loop is not None:
            output, cache = self._loop.generate(original, self.new_cache, kwargs)
            stats = cache.stats()
            # tokens behind the end of an answer cost time, but are no part of it
            stats = replace(stats, generated=output.shape[1] - cache.prompt_width - 1)
        else:
            cache = self.new_cache(self._room(settings, kwargs))
            output = original(past_key_values=cache, **kwargs)
            stats = cache.stats()
        warm_up = self._warm_up_seconds() - warmed_up
        steps = self._now() - self._prefilled_at - warm_up
        self.stats = replace(
            stats,
            prefill_seconds=self._prefilled_at - started,
            decode_seconds_per_step=steps / stats.generated if stats.generated else None,
            warm_up_seconds=warm_up,
            prefill_flops=prefill_flops(stats.layer_lengths, self.decoder.config),
        )
        return output

    def _warm_up_seconds(self) -> float:
        # a capture's seconds hold those of the compilation inside it; without a GPU there is none
        captured = 0.0 if self._loop is None else self._loop.capture_seconds
        return max(captured, self._compile_seconds())

    def _room(self, settings: GenerationConfig, kwargs: dict[str, Any]) -> int:
        tokens = generation_settings.expected_tokens(settings, kwargs)
        if tokens is None and self.decode != "eager":
            raise UnsupportedError(
                "max_new_tokens=None: decode=compile makes room for all tokens beforehand, give a number"
            )
        return DEFAULT_RESERVE if tokens is None else tokens

    def _ensure_cache(
        self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A forward call that would make itself a DynamicCache gets a RaggedCache."""
        if torch.compiler.is_compiling():  # only decode steps are, and those have a cache
            return args, kwargs
        cache = kwargs.get("past_key_values")
        if cache is None and kwargs.get("use_cache", model.config.get_text_config().use_cache):
            kwargs["past_key_values"] = self.new_cache()
        elif cache is not None and not isinstance(cache, RaggedCache):
            raise UnsupportedError(
                f"past_key_values is a {type(cache).__name__}: leave it out, or pass session.new_cache()"
            )
        elif isinstance(cache, StaticCache):
            cache.check_current()
        cache = kwargs.get("past_key_values")
        if cache is not None:
            _check_call(kwargs)
        # a first pass reads whole prompts
        if self.pruning is not None and cache is not None and cache.shared.config.pruner is not None:
            if args:
                names = inspect.signature(model.forward).parameters
                args, kwargs = (), {**dict(zip(names, args, strict=False)), **kwargs}
            kwargs = self.pruning.before_forward(cache, kwargs)
        if cache is not None and not cache.is_prefilled:
            self._answer_needs(cache, kwargs.get("input_ids", args[0] if args else None))
        return args, kwargs

    def _answer_needs(self, cache: RaggedCache, ids: torch.Tensor | None) -> None:
        needs = cache.shared.config.needs
        if "images" in needs:
            cache.shared.images = self._image_positions(ids)
        if needs & FIRST_PASSES:
            if self._received is None:
                raise UnsupportedError(
                    f"method {self.config.method!r} looks at a first pass, which only generate makes: call "
                    "model.generate in place of an own loop"
                )
            cache.shared.received, self._received = self._received, None

    def _image_positions(self, ids: torch.Tensor | None) -> torch.Tensor:
        if ids is None:
            raise UnsupportedError(
                f"input_ids=None: method {self.config.method!r} asks which tokens are image tokens"
            )
        token = getattr(self.model.config, "image_token_id", None)
        return torch.zeros_like(ids, dtype=torch.bool) if token is None else ids == token

    def _hand_over_cache_layer(
        self, attention: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Attention functions do not get the cache: pass this layer's part along."""
        cache = kwargs.get("past_key_values")
        if isinstance(cache, RaggedCache):
            layer = cache.layers[attention.layer_idx]
            kwargs["kv_layer"] = layer
            if self._rotary is not None and not layer.is_prefilled:
                cos, sin = kwargs["position_embeddings"]  # of what the layer holds of the prompt
                if cache.shared.rotation is None or cache.shared.rotation.cos is not cos:
                    cache.shared.rotation = self._rotary.rotation(cos, sin)
        return args, kwargs

    def _note_prefill(self, model: PreTrainedModel, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and self._prefilled_at is None:
            self._prefilled_at = self._now()

    def _now(self) -> float:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()


def _check_call(arguments: dict[str, Any]) -> None:
    if torch.is_grad_enabled():
        raise UnsupportedError(
            "no gradient can flow through a compressed cache: run the loop under torch.inference_mode() or "
            "torch.no_grad()"
        )
    if arguments.get("output_attentions"):
        raise UnsupportedError("output_attentions=True: attention over a compressed cache gives no weights")
