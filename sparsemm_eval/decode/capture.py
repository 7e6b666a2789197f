"""Decode steps kept ready across samples: captured in CUDA graphs on a GPU, run as they are on a CPU."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from sparsemm_eval.cache.static_cache import StaticCache
from sparsemm_eval.compat import hooks_of
from sparsemm_eval.decode.choice import Choice
from sparsemm_eval.decode.step import DecodeStep, forward_of

WARM_UPS = 2  # runs before a capture, in which libraries choose algorithms and take work space
MOST_STEPS = 8  # kept ready, each with its graph; the one not used for longest goes first


@dataclass
class Ready:
    """A step, and its graph as long as everything lies where it lay, and the model does what it did."""

    step: DecodeStep
    graph: torch.cuda.CUDAGraph | None = None
    addresses: object = None
    model: object = None  # see ``computation_of``


def computation_of(model: PreTrainedModel) -> tuple[object, ...]:
    """What a captured step takes from a model: its modules with their hooks, and where its weights lie."""
    modules = ((id(module), *hooks_of(module)) for module in model.modules())
    return (*modules, *(weight.data_ptr() for weight in model.parameters()))


class ReadySteps:
    """Steps of one model by batch size and way of choosing.

    Parameters
    ----------
    model : PreTrainedModel
    compiled : bool
        Compile the forward pass before it is captured.

    Attributes
    ----------
    captures : int
        Graphs recorded so far; on a CPU, how often one would have been.
    capture_seconds : float
        Spent on them.
    """

    def __init__(self, model: PreTrainedModel, *, compiled: bool):
        self.model, self.compiled = model, compiled
        self.captures, self.capture_seconds = 0, 0.0
        self._forward = forward_of(model, compiled)
        self._ready: OrderedDict[tuple[object, ...], Ready] = OrderedDict()
        self._stream: torch.cuda.Stream | None = None  # one for all captures: libraries keep space for each

    def begin(
        self,
        cache: StaticCache,
        choice: Choice,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        seeds: torch.Tensor | None = None,
    ) -> Ready:
        """The step for a sample that starts behind int64 [B, N + 1] tokens at these positions."""
        key = (choice, tuple(positions.shape), tokens.device)
        if key not in self._ready:
            vocabulary = self.model.get_output_embeddings().weight.shape[0]
            step = DecodeStep(self._forward, choice, tokens[:, -1:], positions, vocabulary)
            self._ready[key] = Ready(step)
            if len(self._ready) > MOST_STEPS:
                self._ready.popitem(last=False)
        self._ready.move_to_end(key)
        ready = self._ready[key]
        ready.step.begin(cache, tokens, positions, seeds)
        model = computation_of(self.model)
        if ready.model != model:
            ready.model, ready.graph, ready.addresses = model, None, None
        return ready

    def run(self, ready: Ready, count: int) -> torch.Tensor:
        """Generate ``count`` tokens, at most CHECK_EVERY; int64 [B, count]."""
        ready.step.column.zero_()
        addresses = ready.step.cache.arena.addresses()
        if ready.addresses != addresses:
            self.captures += 1
            ready.addresses, ready.graph = addresses, None
        device = ready.step.tokens.device
        if device.type != "cuda":
            for _ in range(count):
                ready.step()
            return ready.step.history[:, :count]
        with torch.cuda.device(device):
            if ready.graph is None:
                self._capture(ready, device)
            for _ in range(count):
                ready.graph.replay()
        return ready.step.history[:, :count]

    def _capture(self, ready: Ready, device: torch.device) -> None:
        torch.cuda.synchronize()
        started = time.perf_counter()
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        ready.graph = _captured(ready.step, self._stream)
        torch.cuda.synchronize()
        self.capture_seconds += time.perf_counter() - started


def _captured(step: DecodeStep, aside: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """Record one step on a stream of the current device, and leave all that it works on as it was."""
    device, arena = step.tokens.device, step.cache.arena
    before, lengths = [tensor.clone() for tensor in step.state], arena.lengths()
    draws = torch.cuda.get_rng_state(device)

    def restore() -> None:
        for tensor, value in zip(step.state, before, strict=True):
            tensor.copy_(value)
        arena.go_back(lengths)
        torch.cuda.set_rng_state(draws, device)

    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            step()
            restore()  # room was made for tokens, not for warm-ups
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=aside):
        step()
    restore()
    return graph
