"""Builds, checks and times everything that needs a GPU, in one go on a bare machine.

    python -m sparsemm_eval.bench.gpu_suite --out results

Needs torch, triton, transformers and pydantic only and runs from a source checkout. Every section has a time
budget and a guard: one that fails is reported with its traceback, the others still run. Results are written
after each section; started again with the same folder, the suite goes on with the sections that are missing
or failed. A short table comes last.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparsemm_eval import compat
from sparsemm_eval.bench import decode_attention
from sparsemm_eval.bench.clock import copy_bandwidth, extra_bytes, milliseconds, peak_bytes, reset_peak
from sparsemm_eval.bench.decode_attention import Shape
from sparsemm_eval.bench.method_costs import random_views
from sparsemm_eval.bench.model_runs import MEMORY, Setting, guarded, measure, samples_per_second
from sparsemm_eval.bench.random_models import SHAPES, build, synthetic_scores
from sparsemm_eval.bench.report import machine, markdown
from sparsemm_eval.config import CompressionConfig
from sparsemm_eval.errors import ConfigError, in_one_line
from sparsemm_eval.files import check_target, source_digest, users_path, write_text_atomically
from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.kernels.dispatch import choose
from sparsemm_eval.methods import adakv, fullkv, methods, snapkv, sparsemm
from sparsemm_eval.methods.keep import keep
from sparsemm_eval.methods.window_attention import window_importance
from sparsemm_eval.model.masked_heads import masked_heads
from sparsemm_eval.model.session import compress

TOTAL_SECONDS = 450.0
RESULTS = "gpu_suite.json"
NO_TIME = {"error": "no time left"}
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
ADAKV = adakv.METHOD.name
# Methods, or methods and modes, of the sections: in this order, while there is time.
LONG_PROMPTS = (
    (SPARSEMM, "fused"),
    (FULLKV, "fused"),
    (SNAPKV, "fused"),
    (SPARSEMM, "graph"),
    (FULLKV, "graph"),
)
PLAIN = ((FULLKV, "static"), (FULLKV, "dynamic"), (SPARSEMM, "eager"))
BENCHMARK_MIX = (
    (FULLKV, "dynamic"),
    (FULLKV, "fused"),
    (SPARSEMM, "fused"),
    (FULLKV, "graph"),
    (SPARSEMM, "graph"),
    (SPARSEMM, "eager"),
)
SAME_TOKENS = (FULLKV, SPARSEMM)
PREFILLS = (FULLKV, SNAPKV, SPARSEMM, ADAKV)
LARGE_BATCHES = ((8, FULLKV), (8, SPARSEMM), (16, FULLKV), (16, SPARSEMM), (32, SPARSEMM), (32, FULLKV))
OTHER_SHAPES = (SPARSEMM, FULLKV)


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
        """Of one measurement; slow modes take fewer steps, and on a CPU nothing is compiled."""
        budget, steps = (48, 8) if self.tiny else (256, 16 if mode in ("dynamic", "eager") else 64)
        mode = "graph" if self.tiny and mode == "fused" else mode
        return Setting(method, mode, length, batch, budget, steps, self.kernel)

    def decode(self, name: str, settings: list[Setting]) -> dict[str, Any]:
        """Measure a shape's decode steps; rows that had no time or no memory say so."""
        rows: list[dict[str, Any]] = []
        for setting in settings:
            if not self.has_time:
                rows.append({**asdict(setting), **NO_TIME})
                continue
            try:
                rows.append(guarded(setting, partial(self._measured, name)))
            except Exception as error:  # the other rows are worth having
                traceback.print_exc()
                rows.append({**asdict(setting), "error": f"{type(error).__name__}: {error}"[:300]})
            gc.collect()
            if self.device.type == "cuda":
                compat.free_library_workspaces()
                torch.cuda.empty_cache()
        return {"shape": name, "rows": rows}

    def _measured(self, name: str, setting: Setting) -> dict[str, Any]:
        return measure(self.model(name), setting, self.bandwidth, self.scores(name))


def environment(suite: Suite) -> dict[str, Any]:
    """Machine and copy bandwidth."""
    suite.bandwidth = copy_bandwidth(suite.device, 2**24 if suite.tiny else None)
    return {**_facts(suite), "copy_gb_per_s": suite.bandwidth / 1e9}


def kernel_is_right(suite: Suite) -> dict[str, Any]:
    """The kernel against float64, over groups, head dims and dtypes."""
    dtypes = (torch.bfloat16, torch.float16) if suite.device.type == "cuda" else (torch.float32,)
    done = list(decode_attention.checks(suite.device, suite.kernel, dtypes))
    failed = [(shape, error) for shape, error, passed in done if not passed]
    if failed:
        raise AssertionError(f"{len(failed)} of {len(done)} comparisons are off: {failed}")
    return {"comparisons": len(done), "worst": max(error for _, error, _ in done)}


def kernel_is_fast(suite: Suite) -> dict[str, Any]:
    """Small layers in microseconds, large ones in shares of the copy bandwidth; ragged against uniform."""
    rows = []
    for kv_heads, group, entries, batch in TINY_LAYERS if suite.tiny else LAYERS:
        for ragged in (False, True):
            if not suite.has_time:
                rows.append({"entries": entries, "ragged": ragged, **NO_TIME})
            else:
                shape = Shape(kv_heads, group, 32 if suite.tiny else 128, entries, suite.dtype)
                rounds = 3 if suite.tiny else 40
                row = decode_attention.speed(
                    shape, batch, ragged, suite.device, suite.kernel, suite.bandwidth, rounds
                )
                rows.append({**row, "kv_heads": kv_heads, "batch": batch})
    return {"rows": rows}


def _tiny_model(suite: Suite) -> tuple[Any, HeadScores]:
    """A small float32 model and head scores for it."""
    shape = SHAPES["tiny"]
    return build(shape, suite.device, torch.float32, 1024), synthetic_scores(shape.layers, shape.heads)


def same_tokens(suite: Suite) -> dict[str, Any]:
    """Small float32 models: all modes against eager decoding, alone and in a batch, greedy and drawn."""
    model, scores = _tiny_model(suite)
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
                equal = _equal(_answers(model, config, ids, mode, draws), truth)
                outcome[f"{method} {mode} batch {batch}{' drawn' if draws else ''}"] = equal
    return _all_true(outcome)


def _answers(
    model: Any, config: CompressionConfig, prompts: list, decode: str, draws: bool, **more: Any
) -> list:
    sampling = {"do_sample": True, "temperature": 0.8, "top_k": 0} if draws else {"do_sample": False}
    settings = {"max_new_tokens": 21, **sampling, **more}
    with compress(model, config, decode=decode), torch.inference_mode():
        answers = []
        for ids in prompts:
            torch.manual_seed(3)
            answers.append(model.generate(ids, attention_mask=torch.ones_like(ids), **settings))
        return answers


def _equal(ours: list, theirs: list) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def _all_true(outcome: dict[str, Any]) -> dict[str, Any]:
    if not all(value for value in outcome.values() if isinstance(value, bool)):
        raise AssertionError(f"not all as in eager decoding: {outcome}")
    return outcome


def every_method(suite: Suite) -> dict[str, Any]:
    """Each method: entries kept of a float64 prompt as on a CPU, tokens of captured steps as eager ones."""
    shape, (model, scores) = SHAPES["tiny"], _tiny_model(suite)
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(1, 97, (3, 200), generator=generator).to(suite.device)]
    sizes = (shape.layers, shape.heads, shape.kv_heads, 200)
    places = [torch.device("cpu"), suite.device]
    views = [random_views(sizes, torch.float64, lambda values, to=to: values.to(to)) for to in places]
    outcome = {}
    for name, method in methods().items():
        if method.evicts:
            config = CompressionConfig.fitting(name, budget=48, window=8, head_scores=scores)
            here, there = (keep(config, layers) for layers in views)
            outcome[f"{name}: entries"] = all(map(torch.equal, here, [kept.cpu() for kept in there]))
            tokens = [_answers(model, config, ids, mode, draws=False) for mode in ("eager", "graph")]
            outcome[f"{name}: tokens"] = _equal(*tokens)
    return _all_true(outcome)


def changing_steps(suite: Suite) -> dict[str, Any]:
    """Captured steps against eager ones: masks added later, long answers, end tokens, other devices."""
    model, scores = _tiny_model(suite)
    config = CompressionConfig.fitting(SPARSEMM, budget=48, window=8, head_scores=scores)
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(1, 97, (1, n), generator=generator).to(suite.device) for n in (100, 300, 60)]
    outcome: dict[str, Any] = {}
    for mode in ("graph",) if suite.tiny else ("graph", "fused"):
        masked = {}
        for decode in ("eager", mode):
            with masked_heads(model, [(0, 0), (1, 1)]):
                masked[decode] = _answers(model, config, prompts, decode, draws=False)
        outcome[f"{mode}: heads masked in a later session"] = _equal(*masked.values())
        count = 24 if suite.tiny else 600
        truth = _answers(model, config, prompts, "eager", draws=False, max_new_tokens=count)
        outcome[f"{mode}: {count} new tokens"] = _same_prefix(
            _answers(model, config, prompts, mode, draws=False, max_new_tokens=count), truth, suite.tiny
        )
        end = int(truth[0][0, 100 + 5])
        ends = {"max_new_tokens": 21, "eos_token_id": end}
        found = [_answers(model, config, prompts[:1], one, draws=False, **ends) for one in ("eager", mode)]
        outcome[f"{mode}: an end token"] = _equal(*found) and found[0][0].shape[1] < 121
        with compress(model, config, decode=mode) as session, torch.inference_mode():
            captures, times = [], []
            for ids in prompts:
                model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count)
                captures.append(session.captures)
                times.append(session.stats.decode_seconds_per_step)
        outcome[f"{mode}: one capture"] = suite.kernel == "torch" or captures == [1, 1, 1]
        outcome[f"{mode}: captures"] = str(captures)
        outcome[f"{mode}: seconds per step, warm-up apart"] = min(times) > 0
    if torch.cuda.device_count() > 1:
        other = model.to("cuda:1")
        moved = [ids.to("cuda:1") for ids in prompts]
        pair = [_answers(other, config, moved, mode, draws=False) for mode in ("eager", "graph")]
        outcome["graph on cuda:1"] = _equal(*pair)
    return _all_true(outcome)


def _same_prefix(ours: list, theirs: list, exactly: bool) -> bool:
    """Equal, or on a GPU for the first 64 tokens: later, sums in another order may decide a near tie."""
    cut = slice(None) if exactly else slice(0, 60 + 64)
    return all(torch.equal(one[:, cut], other[:, cut]) for one, other in zip(ours, theirs, strict=True))


def images(suite: Suite) -> dict[str, Any]:
    """The embedded readers on pages, through processor and encoded images, alone and in batches."""
    from sparsemm_eval.model import checkpoint, shipped
    from sparsemm_eval.model.placement import place
    from sparsemm_eval.pages.readers.reading import replies, value_rows

    rows = value_rows(6, seed=5)
    outcome: dict[str, Any] = {}
    for name in shipped.NAMES:
        loaded = checkpoint.load(
            checkpoint.find(name, argument="model"), place(str(suite.device), None, "float32")
        )
        text = loaded.model.config.get_text_config()
        scores = synthetic_scores(text.num_hidden_layers, text.num_attention_heads)
        for method in SAME_TOKENS:
            config = CompressionConfig.fitting(method, budget=64, window=8, head_scores=scores)
            for batch in (1, 3):
                found = {}
                for mode in ("eager", "graph"):
                    with compress(loaded.model, config, decode=mode):
                        found[mode] = replies(loaded.model, loaded.processor, rows, 16, batch)
                right = sum(
                    a.split("\n")[0] == row["answer"] for a, row in zip(found["eager"], rows, strict=True)
                )
                name_of_run = f"{name} {method} batch {batch}"
                outcome[f"{name_of_run}: graph as eager"] = found["graph"] == found["eager"]
                outcome[f"{name_of_run}: right of {len(rows)}"] = str(right)
                if method == FULLKV:
                    outcome[f"{name_of_run}: reads"] = right >= len(rows) - 1
    return _all_true(outcome)


def prefill(suite: Suite) -> dict[str, Any]:
    """Four layers of the Vicuna shape: time per layer beside the plain model's, and waits of the host."""
    shape = SHAPES["tiny" if suite.tiny else "vicuna"]
    model = build(shape, suite.device, suite.dtype, 4096, None if suite.tiny else 4)
    layers, rows = model.config.num_hidden_layers, []
    scores = synthetic_scores(layers, shape.heads)
    for length in suite.lengths(300, 3_000):
        ids = torch.randint(1, 90, (1, length), device=suite.device)
        with torch.inference_mode():
            plain = milliseconds(partial(model, input_ids=ids, logits_to_keep=1), 10, suite.device)
            for method in PREFILLS:
                config = CompressionConfig.fitting(method, budget=64, window=16, head_scores=scores)
                with compress(model, config, decode="graph") as session:

                    def run(session: Any = session, ids: torch.Tensor = ids) -> None:
                        model(input_ids=ids, past_key_values=session.new_cache(64), logits_to_keep=1)

                    for _ in range(3):
                        run()
                    waits = _waits(run) if suite.device.type == "cuda" else 0
                    taken = milliseconds(run, 10, suite.device)
                rows.append(
                    {
                        "method": method,
                        "length": length,
                        "extra_ms_per_layer": (taken - plain) / layers,
                        "plain_ms_per_layer": plain / layers,
                        "waits_per_prompt": waits,
                    }
                )
    return {"rows": rows}


def _waits(run: Callable[[], None]) -> int:
    """How often a piece of work waits for the device."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def long_prompts(suite: Suite) -> dict[str, Any]:
    """Vicuna shape, batch 1: the methods in the modes, at 32K and 16K."""
    lengths = suite.lengths(32_000, 16_000)
    settings = [suite.setting(*choice, length) for length in lengths for choice in LONG_PROMPTS]
    return suite.decode("vicuna", settings)


def plain_modes(suite: Suite) -> dict[str, Any]:
    """Vicuna shape, 32K: transformers' own caches, compiled and not, and SparseMM without capture."""
    length = suite.lengths(32_000)[0]
    return suite.decode("vicuna", [suite.setting(*choice, length) for choice in PLAIN])


def large_batches(suite: Suite) -> dict[str, Any]:
    """Vicuna shape, 8K, batches up to 32; what does not fit the memory says so."""
    length = suite.lengths(8_000)[0]
    sizes = ((2, FULLKV), (2, SPARSEMM)) if suite.tiny else LARGE_BATCHES
    settings = [replace(suite.setting(method, "graph", length, size), steps=16) for size, method in sizes]
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
    samples, rows = 2 if suite.tiny else 8, []
    for method, mode in BENCHMARK_MIX:
        if not suite.has_time:
            rows.append({"method": method, "mode": mode, "length": length, **NO_TIME})
        else:
            setting = suite.setting(method, mode, length)
            rate = samples_per_second(suite.model("vicuna"), setting, 16, samples, suite.scores("vicuna"))
            rows.append({"method": method, "mode": mode, "length": length, "samples_per_s": rate})
    return {"rows": rows}


#: name, function, seconds
SECTIONS: tuple[tuple[str, Callable[[Suite], dict[str, Any]], float], ...] = (
    ("environment", environment, 20),
    ("kernel is right", kernel_is_right, 40),
    ("kernel is fast", kernel_is_fast, 20),
    ("every method", every_method, 60),
    ("changing steps", changing_steps, 60),
    ("images", images, 40),
    ("prefill", prefill, 20),
    ("long prompts", long_prompts, 150),
    ("importance", importance_share, 20),
    ("benchmark mix", benchmark_mix, 40),
    ("large batches", large_batches, 70),
    ("plain modes", plain_modes, 90),
    ("other shapes", other_shapes, 40),
    ("same tokens", same_tokens, 60),
)


def run(suite: Suite, out: Path, names: set[str] | None = None) -> None:
    """Run the sections that have no result yet, and write every one's results or traceback when it ends."""
    last = time.monotonic() + TOTAL_SECONDS
    for name, section, seconds in SECTIONS:
        if names and name not in names and name != "environment":
            continue
        if name != "environment" and _is_complete(suite.sections.get(name, NO_TIME)):
            continue
        started = time.monotonic()
        suite.ends = min(started + seconds, last)
        if not suite.has_time:
            suite.sections[name] = dict(NO_TIME)
            continue
        print(f"[{name}] …", file=sys.stderr, flush=True)
        try:
            result = section(suite)
        except Exception:
            result = {"error": traceback.format_exc()}
            print(result["error"], file=sys.stderr, flush=True)
        suite.sections[name] = {**result, "seconds": round(time.monotonic() - started, 1)}
        write_text_atomically(out / RESULTS, json.dumps(suite.sections, indent=2) + "\n")


def _is_complete(section: dict[str, Any]) -> bool:
    """Whether a section and all its parts ended; what did not fit the memory never will."""
    parts = (section, *_rows(section))
    return all(part.get("error", MEMORY).startswith(MEMORY) for part in parts)


def _earlier(out: Path, suite: Suite) -> dict[str, Any]:
    """Results of an earlier start in the same folder.

    Raises
    ------
    ConfigError
        If they are of another machine, other libraries or other code: figures of one table must be of one.
    """
    path = out / RESULTS
    if not path.is_file():
        return {}
    try:
        sections = json.loads(path.read_text(encoding="utf-8"))
        before = sections["environment"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError("out", str(out), f"a folder whose {RESULTS} is this suite's") from error
    other = [
        f"{name}={before.get(name)!r}" for name, fact in _facts(suite).items() if before.get(name) != fact
    ]
    if other:
        raise ConfigError("out", str(out), f"another folder: here are results of {', '.join(other)}")
    return sections


def _facts(suite: Suite) -> dict[str, Any]:
    """What all figures of a results file have in common."""
    return {**machine(suite.device), "kernel": suite.kernel, "tiny": suite.tiny, "source": source_digest()}


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
    if "batch" not in row or ("error" not in row and "ms_per_token" not in row):
        return ", ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in row.items()
        )
    start = f"{row['method']:9} {row['mode']:8} {row['length']:6} x{row['batch']:<3} "
    if "error" in row:
        return start + row["error"][:90]
    peak = max(row["peak_prefill"] or 0, row["peak_decode"] or 0) / 1e9
    figures = f"{row['ms_per_token']:8.3f} ms/token, floor {row['floor_ms']:.3f}, peak {peak:.1f} GB"
    return start + f"{figures}, warm-up {row['warm_up_seconds']:.1f} s"


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
    parser.add_argument(
        "--only", nargs="*", choices=names, help="sections to run, again if need be; default all"
    )
    given = parser.parse_args(arguments)
    device = torch.device("cpu" if given.tiny or not torch.cuda.is_available() else "cuda")
    if device.type == "cpu" and not given.tiny:
        parser.error("no CUDA device here: --tiny tests the suite on a CPU")
    check_target("out", given.out, folder=True)
    suite = Suite(device, given.tiny, choose(given.kernel, device))
    suite.sections = _earlier(given.out, suite)
    for name in given.only or ():
        suite.sections.pop(name, None)
    run(suite, given.out, set(given.only) if given.only else None)
    rows = [row for section in suite.sections.values() for row in _rows(section) if "ms_per_token" in row]
    write_text_atomically(given.out / "gpu_suite.md", markdown(rows))
    print("\n".join(_cells(suite.sections)))
    return suite


if __name__ == "__main__":
    with in_one_line():
        main()
