"""What methods cost while a prompt is read: time and memory beside FullKV's, and waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from sparsemm_eval.bench.clock import extra_bytes, interleaved, traced_peak_bytes
from sparsemm_eval.bench.model_runs import Setting
from sparsemm_eval.bench.report import table
from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.methods import fullkv
from sparsemm_eval.methods.base import FIRST_PASSES, PromptView, Rotation
from sparsemm_eval.methods.keep import keep_layer

FULLKV = fullkv.METHOD.name
#: Calls that hand numbers of a device to the host, which waits for them.
WAITING = frozenset(
    {"cpu", "item", "tolist", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"}
)


@dataclass(frozen=True)
class Cost:
    """Of one method at one prompt length.

    Attributes
    ----------
    passes : int
        Times the model reads the prompt or more before the first token.
    prefill_ms : float
        Median time to the first token, those passes included.
    times_fullkv : float
        The same over FullKV's, measured in turn with it.
    extra_peak_bytes : int
        Peak memory of the prefill beyond FullKV's; below zero where less is held.
    reads_per_layer : float
        Times that the host waits for numbers of the device, mean over the layers after the first.
    """

    method: str
    length: int
    budget: int
    passes: int
    prefill_ms: float
    times_fullkv: float
    extra_peak_bytes: int
    reads_per_layer: float


def measure(
    model: PreTrainedModel,
    methods: Sequence[str],
    length: int,
    budget: int,
    rounds: int,
    scores: HeadScores,
) -> Iterator[Cost]:
    """The cost of every method, at a prompt of random tokens; FullKV is timed anew beside each.

    Parameters
    ----------
    model : PreTrainedModel
        A text decoder.
    rounds : int
        Timed prefills of each.
    """
    base = _runner(model, FULLKV, length, budget, scores)
    base()
    base_peak = _peak_bytes(base, model.device)
    for method in methods:
        run = _runner(model, method, length, budget, scores)
        run()
        seconds = interleaved({"base": base, "method": run}, rounds, model.device, warmup=0)
        config = Setting(method, "eager", length, budget=budget).compression(scores)
        yield Cost(
            method,
            length,
            budget,
            1 + len(config.needs & FIRST_PASSES) + ("answer_attention" in config.needs),
            1000 * seconds["method"],
            seconds["method"] / seconds["base"],
            _peak_bytes(run, model.device) - base_peak,
            reads_per_layer(config, model.config),
        )


def _runner(
    model: PreTrainedModel, method: str, length: int, budget: int, scores: HeadScores
) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, model.config.vocab_size, (1, length), generator=generator).to(model.device)
    setting = Setting(method, "eager", length, budget=budget)

    @torch.inference_mode()
    def run() -> None:
        with setting.open(model, scores):
            mask = torch.ones_like(ids)
            model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=1, do_sample=False)

    return run


def _peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    return extra_bytes(work, device) if device.type == "cuda" else traced_peak_bytes(work)


class OnDevice(torch.Tensor):
    """A tensor that notes where it is read; what is computed from one is one."""

    reads = 0

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and hand plain numbers out only here."""
        result = super().__torch_function__(function, types, args, kwargs or {})
        if getattr(function, "__name__", "") in WAITING:
            OnDevice.reads += 1
            return result.as_subclass(torch.Tensor) if isinstance(result, torch.Tensor) else result
        return result


@contextmanager
def counted_reads() -> Iterator[Callable[[], int]]:
    """Reads of OnDevice tensors inside a ``with`` block."""
    OnDevice.reads = 0
    yield lambda: OnDevice.reads


def reads_per_layer(config: Any, shape: Any, layers: int = 4) -> float:
    """Times that the host waits for numbers while a layer's entries are chosen, the first layer left out."""
    heads, kv_heads = shape.num_attention_heads, shape.num_key_value_heads
    if "head_scores" in config.needs:
        config = config.replace(head_scores=HeadScores(torch.ones(layers, heads)))
    views = random_views((layers, heads, kv_heads, config.budget * 2), seen=_on_device)
    shared: dict[Any, Any] = {}
    found = []
    for layer, view in enumerate(views):
        view = replace(view, layer=layer, layers=layers, config=config, shared=shared)
        with counted_reads() as count:
            keep_layer(view)
        found.append(count())
    return sum(found[1:]) / (layers - 1)


def _on_device(values: torch.Tensor) -> torch.Tensor:
    return values.as_subclass(OnDevice)


def random_views(
    sizes: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float32,
    seen: Callable[[torch.Tensor], torch.Tensor] = lambda values: values,
) -> list[PromptView]:
    """Layers of one random prompt, the first half of it an image, with everything a method may look at.

    Parameters
    ----------
    sizes : tuple of int
        Layers, query heads, KV heads and prompt tokens.
    seen : callable
        What becomes of every tensor before a view gets it: moved to a device, say.
    """
    layers, heads, kv_heads, length = sizes
    dim, generator = 16, torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return seen(torch.randn(*size, generator=generator, dtype=dtype))

    received = seen(torch.rand(layers, 1, kv_heads, length, generator=generator))
    images = seen((torch.arange(length) < length // 2)[None])
    angle = normal(1, length, dim)
    rotation = Rotation(angle.cos(), angle.sin(), lambda count: (angle[:, 0].cos(), angle[:, 0].sin()))
    return [
        PromptView(
            normal(1, heads, length, dim),
            normal(1, kv_heads, length, dim),
            normal(1, kv_heads, length, dim),
            images=images,
            output_weight=normal(8, heads * dim),
            rotation=rotation,
            received=received,
        )
        for _ in range(layers)
    ]


def markdown(costs: Sequence[Cost]) -> str:
    """A table with a row per method, lengths side by side."""
    lengths = sorted({cost.length for cost in costs})
    names = ["passes", *[f"prefill × FullKV, {n} tokens" for n in lengths]]
    names += [*[f"peak beyond FullKV, {n} tokens, MB" for n in lengths], "host reads per layer"]
    lines = []
    for method in dict.fromkeys(cost.method for cost in costs):
        mine = {cost.length: cost for cost in costs if cost.method == method}
        first = next(iter(mine.values()))
        cells = [method, str(first.passes), *(f"{mine[n].times_fullkv:.2f}" for n in lengths)]
        cells += [
            *(f"{mine[n].extra_peak_bytes / 1e6:+.1f}" for n in lengths),
            f"{first.reads_per_layer:.1f}",
        ]
        lines.append(cells)
    return table(["method", *names], lines)
