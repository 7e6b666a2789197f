"""One model, one prompt length, one method, one mode: time per token, prefill, memory, and the floor."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel, StaticCache

from sparsemm_eval.bench.clock import milliseconds, peak_bytes, reset_peak
from sparsemm_eval.bench.model_shapes import weight_bytes
from sparsemm_eval.config import CompressionConfig
from sparsemm_eval.decode.capture import ReadySteps
from sparsemm_eval.decode.choice import Choice
from sparsemm_eval.decode.step import CHECK_EVERY
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.model.session import CompressionSession, compress

#: dynamic: a DynamicCache, as users have it. static: transformers' StaticCache, its step compiled on a GPU.
#: Both FullKV only.
MODES = ("dynamic", "static", "eager", "graph", "fused")


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes
    ----------
    method, mode : str
    length, batch : int
        Prompt tokens, sequences.
    budget : int
    steps : int
        Decode steps that are timed.
    kernel : str
    """

    method: str
    mode: str
    length: int
    batch: int = 1
    budget: int = 256
    steps: int = 64
    kernel: str = "auto"


@dataclass(frozen=True)
class Result:
    """What came out. Times are medians; bytes None where the device counts none.

    Attributes
    ----------
    setting : Setting
    prefill_ms, ms_per_token : float
    moved_bytes : int
        Weights and kept keys and values, read once per step.
    floor_ms : float
        Time of a copy of as many bytes.
    share : float
        Of the copy bandwidth: floor_ms / ms_per_token.
    weights, kv : int
        Bytes held; ``kv`` is what is allocated for keys and values during decode.
    peak_prefill, peak_decode : int or None
        Most bytes allocated during each.
    """

    setting: Setting
    prefill_ms: float
    ms_per_token: float
    moved_bytes: int
    floor_ms: float
    share: float
    weights: int
    kv: int
    peak_prefill: int | None
    peak_decode: int | None

    @property
    def rest(self) -> int | None:
        """Bytes of the peak that are neither weights nor keys and values."""
        if self.peak_prefill is None or self.peak_decode is None:
            return None
        return max(self.peak_prefill, self.peak_decode) - self.weights - self.kv


def measure(
    model: PreTrainedModel, setting: Setting, bandwidth: float, head_scores: object = None, seed: int = 0
) -> Result:
    """Prefill a fresh random prompt and time decode steps.

    Raises
    ------
    ConfigError
        For an unknown mode, or a method that the mode cannot run.
    """
    if setting.mode not in MODES:
        raise ConfigError("mode", setting.mode, "one of " + ", ".join(MODES))
    with torch.inference_mode():
        if setting.mode in ("dynamic", "static"):
            if setting.method != "fullkv":
                raise ConfigError("method", setting.method, f"fullkv with mode={setting.mode}")
            return _measure_plain(model, setting, bandwidth, seed)
        scores = head_scores if setting.method == "sparsemm" else None
        # prompts that are shorter than the window keep everything anyway
        config = CompressionConfig(
            setting.method, budget=setting.budget, window=min(32, setting.budget - 1), head_scores=scores
        )
        with compress(model, config, decode=setting.mode, kernel=setting.kernel) as session:
            return _measure_session(model, session, setting, bandwidth, seed)


def _measure_plain(model: PreTrainedModel, setting: Setting, bandwidth: float, seed: int) -> Result:
    if setting.mode == "static":
        cache = StaticCache(config=model.config, max_cache_len=setting.length + setting.steps + 16)
    else:
        cache = DynamicCache(config=model.config)
    ids, prefill_ms, peak = _prefill(model, cache, setting, seed)
    step = _stepper(
        model, cache, ids, setting, compiled=setting.mode == "static" and model.device.type == "cuda"
    )
    ms, peak_decode = _time_steps(step, 1, setting, model.device)
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    held = sum(keys.numel() * keys.element_size() + values.numel() * values.element_size()
               for keys, values in layers)  # fmt: skip
    entries = setting.batch * setting.length * len(layers) * layers[0][0].shape[1]
    used = entries * 2 * layers[0][0].shape[3] * layers[0][0].element_size()
    return _result(model, setting, bandwidth, prefill_ms, ms, used, held, peak, peak_decode)


def _measure_session(
    model: PreTrainedModel, session: CompressionSession, setting: Setting, bandwidth: float, seed: int
) -> Result:
    cache = session.new_cache(setting.steps + 4 * CHECK_EVERY)
    ids, prefill_ms, peak = _prefill(model, cache, setting, seed)
    if setting.mode == "eager":
        tokens = 1
        step = _stepper(model, cache, ids, setting, compiled=False)
    else:
        steps = ReadySteps(model, compiled=setting.mode == "fused")
        positions = torch.full((setting.batch, 1), setting.length, device=model.device)
        ready = steps.begin(cache, Choice(), torch.cat([ids, ids[:, -1:]], dim=1), positions)
        tokens = CHECK_EVERY if model.device.type == "cuda" else 1  # on a busy CPU short spans are cleaner

        def step() -> None:
            steps.run(ready, tokens)

    ms, peak_decode = _time_steps(step, tokens, setting, model.device)
    stats = cache.stats()
    held = stats.kv_bytes_end if setting.mode == "eager" else session.arena.nbytes
    used = int(stats.kv_bytes.sum())
    return _result(model, setting, bandwidth, prefill_ms, ms, used, held, peak, peak_decode)


def _prefill(
    model: PreTrainedModel, cache: object, setting: Setting, seed: int
) -> tuple[torch.Tensor, float, int | None]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, model.config.vocab_size, (setting.batch, setting.length), generator=generator).to(
        model.device
    )
    reset_peak(model.device)
    started = time.perf_counter()
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return ids, 1000 * (time.perf_counter() - started), peak_bytes(model.device)


def _stepper(
    model: PreTrainedModel, cache: object, ids: torch.Tensor, setting: Setting, *, compiled: bool
) -> Callable[[], None]:
    """A decode step with greedy choice, token by token as ``generate`` does it."""
    tokens = ids[:, -1:].clone()
    positions = torch.full((setting.batch, 1), setting.length, device=model.device)

    def forward(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        output = model(input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True)
        return output.logits[:, -1].float().argmax(-1, keepdim=True)

    run = torch.compile(forward, mode="reduce-overhead", fullgraph=True) if compiled else forward

    def step() -> None:
        tokens.copy_(run(tokens, positions))
        positions.add_(1)

    return step


def _time_steps(
    step: Callable[[], object], tokens: int, setting: Setting, device: torch.device
) -> tuple[float, int | None]:
    for _ in range(3 if tokens == 1 else 1):
        step()
    reset_peak(device)
    ms = milliseconds(step, max(setting.steps // tokens, 1), device) / tokens
    return ms, peak_bytes(device)


def _result(
    model: PreTrainedModel,
    setting: Setting,
    bandwidth: float,
    prefill_ms: float,
    ms: float,
    used: int,
    held: int,
    peak: int | None,
    peak_decode: int | None,
) -> Result:
    weights, read = weight_bytes(model)
    floor = 1000 * (read + used) / bandwidth
    return Result(setting, prefill_ms, ms, read + used, floor, floor / ms, weights, held, peak, peak_decode)


def samples_per_second(
    model: PreTrainedModel, setting: Setting, new_tokens: int, samples: int, head_scores: object = None
) -> float:
    """Batches of fresh random prompts through ``generate``, prompt and answer, one after the other."""
    generator = torch.Generator().manual_seed(1)
    shape = (setting.batch, setting.length)

    def answer() -> None:
        ids = torch.randint(1, model.config.vocab_size, shape, generator=generator).to(model.device)
        mask = torch.ones_like(ids)
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False)

    def rate() -> float:
        answer()
        batches = max(samples // setting.batch, 1)
        started = time.perf_counter()
        for _ in range(batches):
            answer()
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        return batches * setting.batch / (time.perf_counter() - started)

    with torch.inference_mode():
        if setting.mode == "dynamic":
            return rate()
        scores = head_scores if setting.method == "sparsemm" else None
        config = CompressionConfig(
            setting.method, budget=setting.budget, window=min(32, setting.budget - 1), head_scores=scores
        )
        with compress(model, config, decode=setting.mode, kernel=setting.kernel):
            return rate()
