"""One model, one prompt length, one method, one mode: time per token, prefill, memory, and the floor."""

from __future__ import annotations

import copy
import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache

from sparsemm_eval.bench.clock import interleaved, milliseconds, now, peak_bytes, reset_peak
from sparsemm_eval.bench.random_models import weight_bytes
from sparsemm_eval.config import CompressionConfig
from sparsemm_eval.decode.capture import ReadySteps
from sparsemm_eval.decode.choice import Choice
from sparsemm_eval.decode.step import CHECK_EVERY
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.methods.registry import method_named
from sparsemm_eval.model.session import CompressionSession, compress

#: dynamic: a DynamicCache, as users have it. static: transformers' StaticCache, its step compiled on a GPU.
PLAIN_MODES = ("dynamic", "static")  # of the full cache only
MODES = (*PLAIN_MODES, "eager", "graph", "fused")
MEMORY = "out of memory"  # how the error of what does not fit begins
RUN_UP = 8  # calls before captured steps are timed: a GPU that was idle takes a while to raise its clocks


@dataclass(frozen=True)
class Setting:
    """What is measured: prompts of `length` tokens, `batch` at once, then `steps` timed decode steps."""

    method: str
    mode: str
    length: int
    batch: int = 1
    budget: int = 256
    steps: int = 64
    kernel: str = "auto"

    @property
    def exists(self) -> bool:
        """Whether the mode can run the method: transformers' own caches hold the full cache only."""
        return self.mode not in PLAIN_MODES or not compresses(self.method)

    def open(
        self, model: PreTrainedModel, head_scores: object
    ) -> AbstractContextManager[CompressionSession | None]:
        """The compression session; None in the modes of transformers' own caches.

        Raises
        ------
        ConfigError
            For an unknown mode, or a method that the mode cannot run.
        """
        if not self.exists:
            raise ConfigError("method", self.method, f"the full cache with mode={self.mode}")
        if self.mode in PLAIN_MODES:
            return nullcontext()
        return compress(model, self.compression(head_scores), decode=self.mode, kernel=self.kernel)

    def compression(self, head_scores: object) -> CompressionConfig:
        """The method with its budget; a ConfigError for a budget that it cannot have."""
        # prompts that are shorter than the window keep everything anyway
        window = min(32, self.budget - 1)
        settings = {"budget": self.budget, "window": window, "head_scores": head_scores}
        return CompressionConfig.fitting(self.method, **settings)


def compresses(method: str) -> bool:
    """Whether a method may evict anything at all."""
    return method_named(method).evicts


def combinations(
    methods: Sequence[str],
    modes: Sequence[str],
    lengths: Sequence[int],
    batches: Sequence[int],
    **others: Any,
) -> list[Setting]:
    """A setting for every combination that exists."""
    every = itertools.product(lengths, batches, methods, modes)
    settings = [Setting(method, mode, length, batch, **others) for length, batch, method, mode in every]
    return [setting for setting in settings if setting.exists]


def guarded(setting: Setting, run: Callable[[Setting], Any]) -> Any:
    """What a run found; if it does not fit the memory, a flat record whose ``error`` says so."""
    try:
        return run(setting)
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not known and "can't allocate memory" not in str(error):  # torch's RuntimeError on a CPU
            raise
        message = ": ".join([MEMORY, *str(error).splitlines()[:1]])
    torch.cuda.empty_cache()  # here the failed attempt's tensors are gone
    return {**asdict(setting), "error": message}


def measure_all(
    model: PreTrainedModel, settings: Sequence[Setting], bandwidth: float, head_scores: object = None
) -> list[dict[str, Any]]:
    """A row for each setting: alone on a GPU, in turn with those of its length and batch on a CPU.

    A GPU counts its own time and has less memory; a CPU is disturbed by whatever else runs there.
    """
    if model.device.type == "cuda":
        return [guarded(one, lambda one: measure(model, one, bandwidth, head_scores)) for one in settings]
    groups = itertools.groupby(settings, attrgetter("length", "batch"))
    return [row for _, group in groups for row in measure_in_turn(model, [*group], bandwidth, head_scores)]


def measure(
    model: PreTrainedModel, setting: Setting, bandwidth: float, head_scores: object = None
) -> dict[str, Any]:
    """Prefill a fresh random prompt and time decode steps.

    Returns
    -------
    dict
        A flat record of JSON types: the setting; ``prefill_ms``; ``warm_up_seconds`` of the first steps,
        which compile and capture; ``ms_per_token`` of the steady ones, the median; ``moved_bytes``, weights
        and kept keys and values, read once per step; ``floor_ms``, the time that the memory's bandwidth
        allows for as many bytes; ``share`` of the measured memory bandwidth, floor_ms / ms_per_token; bytes
        of the ``weights`` and what is allocated for keys and values during decode, ``kv``; most bytes
        allocated during each phase, ``peak_prefill`` and ``peak_decode``, and the ``rest`` of the higher
        peak, None where the device counts none.

    Raises
    ------
    ConfigError
        For an unknown mode, or a method that the mode cannot run.
    """
    device = model.device
    with _prepared(model, setting, head_scores) as ready:
        reset_peak(device)
        for _ in range(RUN_UP if device.type == "cuda" and ready.tokens > 1 else 0):
            ready.step()
        ms = milliseconds(ready.step, max(setting.steps // ready.tokens, 1), device)
        return ready.row(ms, peak_bytes(device), bandwidth)


def measure_in_turn(
    model: PreTrainedModel, settings: Sequence[Setting], bandwidth: float, head_scores: object = None
) -> list[dict[str, Any]]:
    """What ``measure`` finds on a CPU, for settings with as many steps, which take turns.

    All are in memory at once, each with a ``twin`` of the model. What does not fit beside the others is a row
    with ``error``.
    """
    gc.collect()  # captured steps' caches and their arenas hold each other
    found: dict[Setting, Any] = {}
    with ExitStack() as stack:

        def step(setting: Setting) -> None:
            ready = found[setting]
            if isinstance(ready, _Prepared):
                found[setting] = guarded(setting, lambda _: ready.step()) or ready

        for setting in settings:
            found[setting] = guarded(
                setting, lambda one: stack.enter_context(_prepared(twin(model), one, head_scores))
            )
        turns = {setting: partial(step, setting) for setting in found}
        seconds = interleaved(turns, settings[0].steps, model.device, warmup=0)
        return [
            ready.row(1000 * seconds[setting], None, bandwidth) if isinstance(ready, _Prepared) else ready
            for setting, ready in found.items()
        ]


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model with the same tensors: a session changes one, and the other stays as it is."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


@dataclass(frozen=True)
class _Prepared:
    """A setting whose prompt is read, and whose first steps, which compile and capture, are done."""

    step: Callable[[], None]
    tokens: int  # that a step makes for each sequence
    figures: dict[str, Any]  # of a row
    kv_bytes: Callable[[], tuple[int, int]]
    weights: tuple[int, int]

    def row(self, ms: float, peak_decode: int | None, bandwidth: float) -> dict[str, Any]:
        """What ``measure`` returns, from the milliseconds of a step."""
        (held, used), (weights, read) = self.kv_bytes(), self.weights
        ms, floor = ms / self.tokens, 1000 * (read + used) / bandwidth
        peak_prefill = self.figures["peak_prefill"]
        counted = peak_prefill is not None and peak_decode is not None
        return {
            **self.figures,
            "ms_per_token": ms,
            "moved_bytes": read + used,
            "floor_ms": floor,
            "share": floor / ms,
            "weights": weights,
            "kv": held,
            "peak_decode": peak_decode,
            "rest": max(peak_prefill, peak_decode) - weights - held if counted else None,
        }


@contextmanager
def _prepared(model: PreTrainedModel, setting: Setting, head_scores: object) -> Iterator[_Prepared]:
    """The model with a random prompt in the setting, ready for steady decode steps inside the block."""
    with torch.inference_mode(), setting.open(model, head_scores) as session:
        if session is not None:
            cache: Any = session.new_cache(setting.steps + (2 + RUN_UP) * CHECK_EVERY)
        elif setting.mode == "static":
            cache = StaticCache(config=model.config, max_cache_len=setting.length + setting.steps + 16)
        else:
            cache = DynamicCache(config=model.config)
        ids = _random_prompts(model, setting, torch.Generator().manual_seed(0))
        reset_peak(model.device)
        started = now(model.device)
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        prefill_ms, peak = 1000 * (now(model.device) - started), peak_bytes(model.device)
        step, tokens = _stepper(model, cache, ids, setting)
        started = now(model.device)
        for _ in range(3 if tokens == 1 else 1):
            step()
        warm_up = now(model.device) - started
        figures = {"prefill_ms": prefill_ms, "warm_up_seconds": warm_up, "peak_prefill": peak}
        kv_bytes = partial(_kv_bytes, cache, session, setting)
        yield _Prepared(step, tokens, asdict(setting) | figures, kv_bytes, weight_bytes(model))


def _kv_bytes(cache: Any, session: CompressionSession | None, setting: Setting) -> tuple[int, int]:
    """Bytes allocated for keys and values, and those of the prompt's entries."""
    if session is not None:
        stats = cache.stats()
        held = stats.kv_bytes_allocated if setting.mode == "eager" else session.arena.nbytes
        return held, int(stats.kv_bytes.sum())
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    held = sum(tensor.numel() * tensor.element_size() for pair in layers for tensor in pair)
    keys = layers[0][0]
    entries = setting.batch * setting.length * len(layers) * keys.shape[1]
    return held, entries * 2 * keys.shape[3] * keys.element_size()


def _random_prompts(model: PreTrainedModel, setting: Setting, generator: torch.Generator) -> torch.Tensor:
    size = (setting.batch, setting.length)
    return torch.randint(1, model.config.vocab_size, size, generator=generator).to(model.device)


def _stepper(
    model: PreTrainedModel, cache: Any, ids: torch.Tensor, setting: Setting
) -> tuple[Callable[[], None], int]:
    """A decode step with greedy choice, and how many tokens a call of it makes."""
    on_gpu = model.device.type == "cuda"
    positions = torch.full((setting.batch, 1), setting.length, device=model.device)
    if setting.mode in ("graph", "fused"):
        steps = ReadySteps(model, compiled=setting.mode == "fused")
        ready = steps.begin(cache, Choice(), torch.cat([ids, ids[:, -1:]], dim=1), positions)
        several = CHECK_EVERY if on_gpu else 1  # on a busy CPU short spans are cleaner

        def steps_at_once() -> None:
            steps.run(ready, several)

        return steps_at_once, several

    tokens = ids[:, -1:].clone()

    def forward(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        output = model(input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True)
        return output.logits[:, -1].float().argmax(-1, keepdim=True)

    compiled = setting.mode == "static" and on_gpu
    run = torch.compile(forward, mode="reduce-overhead", fullgraph=True) if compiled else forward

    def step() -> None:
        tokens.copy_(run(tokens, positions))
        positions.add_(1)

    return step, 1


def samples_per_second(
    model: PreTrainedModel, setting: Setting, new_tokens: int, samples: int, head_scores: object = None
) -> float:
    """Batches of fresh random prompts through ``generate``, prompt and answer, one after the other."""
    generator = torch.Generator().manual_seed(1)
    batches = max(samples // setting.batch, 1)

    def answer() -> None:
        ids = _random_prompts(model, setting, generator)
        mask = torch.ones_like(ids)
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False)

    with torch.inference_mode(), setting.open(model, head_scores):
        answer()
        started = now(model.device)
        for _ in range(batches):
            answer()
        return batches * setting.batch / (now(model.device) - started)
