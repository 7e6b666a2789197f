"""Builds, checks and times everything that needs a GPU, in one go on a bare machine.

    python -m sparsemm_eval.bench.gpu_suite --out results

Needs torch, triton and transformers only and runs from a source checkout. Every section has a time budget and
a guard: one that fails is reported with its traceback, the others still run. A short table comes last.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from sparsemm_eval.bench import kernel_checks
from sparsemm_eval.bench.clock import copy_bandwidth, extra_bytes, milliseconds, peak_bytes, reset_peak
from sparsemm_eval.bench.decode_attention import Shape
from sparsemm_eval.bench.model_runs import Setting, guarded, measure, samples_per_second
from sparsemm_eval.bench.random_models import SHAPES, build, synthetic_scores
from sparsemm_eval.bench.report import machine, markdown
from sparsemm_eval.config import CompressionConfig
from sparsemm_eval.errors import in_one_line
from sparsemm_eval.files import check_target, users_path, write_text_atomically
from sparsemm_eval.kernels.dispatch import choose
from sparsemm_eval.methods import fullkv, snapkv, sparsemm
from sparsemm_eval.methods.window_attention import window_importance
from sparsemm_eval.model.session import compress

TOTAL_SECONDS = 450.0
# KV heads, group, mean entries, batch of the layers whose attention is timed
LAYERS = (
    (32, 1, 256, 1),
    (8, 4, 256, 1),
    (4, 7, 256, 1),
    (32, 1, 4096, 1),
    (32, 1, 32768, 1),
    (32, 1, 256, 32),
    (8, 4, 16384, 1),
)
TINY_LAYERS = ((4, 1, 40, 1),)
FULLKV, SNAPKV, SPARSEMM = (module.METHOD.name for module in (fullkv, snapkv, sparsemm))
# Methods, or methods and modes, of the sections: in this order, while there is time.
LONG_PROMPTS = (
    (FULLKV, "graph"),
    (SNAPKV, "graph"),
    (SPARSEMM, "graph"),
    (FULLKV, "dynamic"),
    (SPARSEMM, "eager"),
)
BENCHMARK_MIX = ((FULLKV, "dynamic"), (FULLKV, "graph"), (SPARSEMM, "eager"), (SPARSEMM, "graph"))
SAME_TOKENS = (FULLKV, SPARSEMM)
FUSED_STEPS = (SPARSEMM, FULLKV, SNAPKV)
LARGE_BATCHES = OTHER_SHAPES = (SPARSEMM, FULLKV)


@dataclass
class Suite:
    """What the sections share."""

    device: torch.device
    tiny: bool  # small shapes, to test the suite itself
    kernel: str  # torch or triton
    bandwidth: float = 1.0  # bytes per second of a copy
    sections: dict[str, Any] = field(default_factory=dict)  # results by section
    ends: float = 0.0  # time.monotonic at which the running section shall stop taking on more
    models: dict[str, Any] = field(default_factory=dict)

    @property
    def has_time(self) -> bool:
        """Whether the section may begin another measurement."""
        return time.monotonic() < self.ends

    @property
    def dtype(self) -> torch.dtype:
        """Of models and entries."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def model(self, name: str) -> Any:
        """A random model of a shape; only one is held at a time."""
        name = "tiny" if self.tiny else name
        if name not in self.models:
            self.models.clear()
            gc.collect()
            positions = 1024 if self.tiny else 33_000
            self.models[name] = build(SHAPES[name], self.device, self.dtype, positions)
        return self.models[name]

    def scores(self, name: str) -> Any:
        """Head scores of the published concentration for a shape."""
        shape = SHAPES["tiny" if self.tiny else name]
        return synthetic_scores(shape.layers, shape.heads)

    def lengths(self, *lengths: int) -> list[int]:
        """Prompt tokens."""
        return [128] if self.tiny else list(lengths)

    def setting(self, method: str, mode: str, length: int, batch: int = 1) -> Setting:
        """Of one measurement."""
        budget, steps = (48, 8) if self.tiny else (256, 64)
        return Setting(method, mode, length, batch, budget, steps, self.kernel)

    def decode(self, name: str, settings: list[Setting]) -> dict[str, Any]:
        """Measure a shape's decode steps; rows that had no time or no memory say so."""
        rows: list[dict[str, Any]] = []
        for setting in settings:
            if not self.has_time:
                rows.append({**asdict(setting), "error": "no time left"})
                continue
            rows.append(guarded(setting, partial(self._measured, name)))
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return {"shape": name, "rows": rows}

    def _measured(self, name: str, setting: Setting) -> dict[str, Any]:
        return measure(self.model(name), setting, self.bandwidth, self.scores(name))


def environment(suite: Suite) -> dict[str, Any]:
    """Machine and copy bandwidth."""
    suite.bandwidth = copy_bandwidth(suite.device, 2**24 if suite.tiny else None)
    facts = machine(suite.device)
    return {**facts, "kernel": suite.kernel, "copy_gb_per_s": suite.bandwidth / 1e9}


def kernel_is_right(suite: Suite) -> dict[str, Any]:
    """The kernel against float64, over groups, head dims and dtypes."""
    dtypes = (torch.bfloat16, torch.float16) if suite.device.type == "cuda" else (torch.float32,)
    done = list(kernel_checks.checks(suite.device, suite.kernel, dtypes))
    failed = [asdict(check) for check in done if not check.passed]
    if failed:
        raise AssertionError(f"{len(failed)} of {len(done)} comparisons are off: {failed}")
    return {"comparisons": len(done), "worst": max(check.error for check in done)}


def kernel_is_fast(suite: Suite) -> dict[str, Any]:
    """Small layers in microseconds, large ones in shares of the copy bandwidth; ragged against uniform."""
    rows = []
    for kv_heads, group, entries, batch in TINY_LAYERS if suite.tiny else LAYERS:
        for ragged in (False, True):
            if suite.has_time:
                shape = Shape(kv_heads, group, 32 if suite.tiny else 128, entries, suite.dtype)
                rounds = 3 if suite.tiny else 40
                row = kernel_checks.speed(
                    shape, batch, ragged, suite.device, suite.kernel, suite.bandwidth, rounds
                )
                rows.append({**row, "kv_heads": kv_heads, "batch": batch})
    return {"rows": rows}


def same_tokens(suite: Suite) -> dict[str, Any]:
    """Small float32 models: all modes against eager decoding, alone and in a batch, greedy and drawn."""
    shape = SHAPES["tiny"]
    model = build(shape, suite.device, torch.float32, 1024)
    scores = synthetic_scores(shape.layers, shape.heads)
    generator = torch.Generator().manual_seed(0)
    outcome = {}
    for method in SAME_TOKENS:
        config = CompressionConfig.fitting(method, budget=48, window=8, head_scores=scores)
        for batch, draws in ((1, False), (3, False), (2, True)):
            ids = [torch.randint(1, 97, (batch, n), generator=generator).to(suite.device) for n in (300, 200)]
            truth = _answers(model, config, ids, "eager", draws)
            for mode in ("compile", "graph", "fused"):
                if mode != "graph" and (suite.tiny or batch > 1):
                    continue
                pairs = zip(_answers(model, config, ids, mode, draws), truth, strict=True)
                equal = all(torch.equal(ours, theirs) for ours, theirs in pairs)
                outcome[f"{method} {mode} batch {batch}{' drawn' if draws else ''}"] = equal
    if not all(outcome.values()):
        raise AssertionError(f"tokens differ: {outcome}")
    return outcome


def _answers(model: Any, config: CompressionConfig, prompts: list, decode: str, draws: bool) -> list:
    sampling = {"do_sample": True, "temperature": 0.8, "top_k": 0} if draws else {"do_sample": False}
    with compress(model, config, decode=decode) as session, torch.inference_mode():
        answers = []
        for ids in prompts:
            torch.manual_seed(3)
            mask = torch.ones_like(ids)
            answers.append(model.generate(ids, attention_mask=mask, max_new_tokens=21, **sampling))
        assert session.stats.generated == 20
        return answers


def long_prompts(suite: Suite) -> dict[str, Any]:
    """Vicuna shape, batch 1: the methods in the modes, at 32K and 16K."""
    lengths = suite.lengths(32_000, 16_000)
    settings = [suite.setting(*choice, length) for length in lengths for choice in LONG_PROMPTS]
    return suite.decode("vicuna", settings)


def fused_steps(suite: Suite) -> dict[str, Any]:
    """Vicuna shape, 32K, batch 1: the captured step with fused kernels."""
    length = suite.lengths(32_000)[0]
    methods = FUSED_STEPS[:1] if suite.tiny else FUSED_STEPS
    mode = "graph" if suite.tiny else "fused"  # compiling takes a minute on a CPU
    return suite.decode("vicuna", [suite.setting(method, mode, length) for method in methods])


def large_batches(suite: Suite) -> dict[str, Any]:
    """Vicuna shape, 8K, batch 32 and 8."""
    length = suite.lengths(8_000)[0]
    sizes = (2, 2) if suite.tiny else (8, 32)
    settings = [suite.setting(method, "graph", length, size) for size in sizes for method in LARGE_BATCHES]
    return suite.decode("vicuna", settings)


def other_shapes(suite: Suite) -> dict[str, Any]:
    """Mistral and Qwen2-VL shapes at 32K."""
    length = suite.lengths(32_000)[0]
    settings = [suite.setting(method, "graph", length) for method in OTHER_SHAPES]
    return {name: suite.decode(name, settings) for name in ("mistral", "qwen2vl")}


def importance_share(suite: Suite) -> dict[str, Any]:
    """Time and temporary memory of the importance pass beside a layer's prefill."""
    rows = []
    for length in suite.lengths(8_000, 32_000):
        model = suite.model("vicuna")
        score, temporary = _importance(suite, model.config, length)
        ids = torch.randint(1, model.config.vocab_size, (1, length), device=suite.device)
        with torch.inference_mode():
            reset_peak(suite.device)
            forward = partial(model, input_ids=ids, use_cache=False, logits_to_keep=1)
            layer = milliseconds(forward, 3, suite.device) / model.config.num_hidden_layers
        rows.append(
            {
                "length": length,
                "importance_ms": score,
                "layer_ms": layer,
                "share": score / layer,
                "importance_bytes": temporary,
                "prefill_peak_bytes": peak_bytes(suite.device),
            }
        )
    return {"rows": rows}


def _importance(suite: Suite, config: Any, length: int) -> tuple[float, int | None]:
    """Milliseconds of the importance pass over one layer, and the bytes it takes for a while."""
    dim = config.hidden_size // config.num_attention_heads
    query, key = (
        torch.randn(1, count, length, dim, device=suite.device, dtype=suite.dtype)
        for count in (config.num_attention_heads, config.num_key_value_heads)
    )
    score = partial(window_importance, query, key, window=32, kernel_size=5)
    taken: list[float] = []

    def timed() -> None:
        taken.append(milliseconds(score, 2 if suite.tiny else 5, suite.device))

    with torch.inference_mode():
        score()
        temporary = extra_bytes(timed, suite.device)
    return taken[0], temporary


def benchmark_mix(suite: Suite) -> dict[str, Any]:
    """Samples per second end to end: prompts of 2.3K tokens, 16 new tokens."""
    length = suite.lengths(2_300)[0]
    samples, rows = 2 if suite.tiny else 12, []
    for method, mode in BENCHMARK_MIX:
        if suite.has_time:
            setting = suite.setting(method, mode, length)
            rate = samples_per_second(suite.model("vicuna"), setting, 16, samples, suite.scores("vicuna"))
            rows.append({"method": method, "mode": mode, "length": length, "samples_per_s": rate})
    return {"rows": rows}


#: name, function, seconds
SECTIONS: tuple[tuple[str, Callable[[Suite], dict[str, Any]], float], ...] = (
    ("environment", environment, 20),
    ("kernel is right", kernel_is_right, 40),
    ("kernel is fast", kernel_is_fast, 40),
    ("long prompts", long_prompts, 100),
    ("same tokens", same_tokens, 60),
    ("fused steps", fused_steps, 150),
    ("importance", importance_share, 20),
    ("benchmark mix", benchmark_mix, 40),
    ("large batches", large_batches, 60),
    ("other shapes", other_shapes, 60),
)


def run(suite: Suite, names: set[str] | None = None) -> None:
    """Run the sections; results and tracebacks end up in ``suite.sections``."""
    last = time.monotonic() + TOTAL_SECONDS
    for name, section, seconds in SECTIONS:
        if names and name not in names and name != "environment":
            continue
        started = time.monotonic()
        suite.ends = min(started + seconds, last)
        if not suite.has_time:
            suite.sections[name] = {"error": "no time left"}
            continue
        print(f"[{name}] …", file=sys.stderr, flush=True)
        try:
            result = section(suite)
        except Exception:
            result = {"error": traceback.format_exc()}
            print(result["error"], file=sys.stderr, flush=True)
        suite.sections[name] = {**result, "seconds": round(time.monotonic() - started, 1)}


def _rows(section: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A section's rows of figures, those of its parts included."""
    for part in (section, *section.values()):
        if isinstance(part, dict):
            yield from part.get("rows", [])


def _cells(sections: dict[str, Any]) -> Iterator[str]:
    """The short table: one line per section, one per row of figures."""
    for name, section in sections.items():
        error = section.get("error")
        reason = f": {error.strip().splitlines()[-1][:140]}" if error else ""
        yield f"{'FAIL' if error else 'ok':4} {name} ({section.get('seconds', 0)} s){reason}"
        for row in _rows(section):
            yield "       " + _line(row)


def _line(row: dict[str, Any]) -> str:
    if "error" not in row and "ms_per_token" not in row:
        return ", ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in row.items()
        )
    start = f"{row['method']:9} {row['mode']:8} {row['length']:6} x{row['batch']:<3} "
    if "error" in row:
        return start + row["error"][:90]
    peak = max(row["peak_prefill"] or 0, row["peak_decode"] or 0) / 1e9
    return start + f"{row['ms_per_token']:8.3f} ms/token, floor {row['floor_ms']:.3f}, peak {peak:.1f} GB"


def main(arguments: list[str] | None = None) -> Suite:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out = {"type": users_path, "default": os.environ.get("OUT", "gpu_suite")}
    parser.add_argument("--out", **out, help="folder for gpu_suite.json")
    parser.add_argument("--tiny", action="store_true", help="small shapes on the CPU, to test the suite")
    parser.add_argument("--kernel", default="auto", help="auto, torch or triton")
    names = [name for name, *_ in SECTIONS]
    parser.add_argument("--only", nargs="*", choices=names, help="names of sections; default all")
    given = parser.parse_args(arguments)
    device = torch.device("cpu" if given.tiny or not torch.cuda.is_available() else "cuda")
    if device.type == "cpu" and not given.tiny:
        parser.error("no CUDA device here: --tiny tests the suite on a CPU")
    check_target("out", given.out, folder=True)
    suite = Suite(device, given.tiny, choose(given.kernel, device))
    run(suite, set(given.only) if given.only else None)
    write_text_atomically(given.out / "gpu_suite.json", json.dumps(suite.sections, indent=2) + "\n")
    rows = [row for section in suite.sections.values() for row in _rows(section) if "ms_per_token" in row]
    write_text_atomically(given.out / "gpu_suite.md", markdown(rows))
    print("\n".join(_cells(suite.sections)))
    return suite


if __name__ == "__main__":
    with in_one_line():
        main()
