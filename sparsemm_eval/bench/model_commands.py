"""`sparsemm bench decode|prefill|memory|throughput`: whole models with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparsemm_eval.checks import Count, listed
from sparsemm_eval.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16")
#: what each command's plot shows, and what it is called there
QUANTITIES = {
    "decode": ("ms_per_token", "ms per token"),
    "prefill": ("prefill_ms", "prefill, ms"),
    "memory": ("kv", "bytes held for keys and values"),
    "throughput": ("samples_per_s", "samples per second"),
}

Shape = Annotated[str, typer.Option(help="vicuna, mistral, qwen2vl or tiny.")]
Methods = Annotated[str, typer.Option(help="fullkv, snapkv, sparsemm …, comma-separated.")]
Modes = Annotated[
    str, typer.Option(help="dynamic and static (FullKV only), eager, graph, fused; comma-separated.")
]
Lengths = Annotated[str, typer.Option(help="Prompt tokens, comma-separated.")]
Batches = Annotated[str, typer.Option(help="Sequences at once, comma-separated.")]
Budget = Annotated[int, typer.Option(min=2, help="Mean entries per KV head.")]
Steps = Annotated[int, typer.Option(min=1, help="Decode steps that are timed.")]
Scores = Annotated[str | None, typer.Option(help="Head scores: file or name; default a synthetic table.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Kernel = Annotated[str, typer.Option(help="auto, torch or triton.")]
Out = Annotated[Path | None, typer.Option(help="Folder for JSON, Markdown and a plot.")]


def add_to(app: typer.Typer) -> None:
    """Give the bench command its subcommands over whole models."""
    app.command("decode")(decode)
    app.command("prefill")(prefill)
    app.command("memory")(memory)
    app.command("throughput")(throughput)


def decode(
    shape: Shape = "vicuna",
    methods: Methods = "fullkv,snapkv,sparsemm",
    modes: Modes = "dynamic,eager,graph",
    lengths: Lengths = "2048,8192,16384,32000",
    batches: Batches = "1",
    budget: Budget = 256,
    steps: Steps = 64,
    head_scores: Scores = None,
    device: Device = "cuda",
    dtype: Dtype = "bfloat16",
    kernel: Kernel = "auto",
    out: Out = None,
) -> None:
    """Time per token beside the time of a copy of all bytes that must be read.

    Example: sparsemm bench decode --shape tiny --device cpu --dtype float32 --lengths 64 --budget 40
    """
    _run("decode", locals())


def prefill(
    shape: Shape = "vicuna",
    methods: Methods = "fullkv,sparsemm",
    modes: Modes = "dynamic,eager",
    lengths: Lengths = "2048,8192,16384,32000",
    batches: Batches = "1",
    budget: Budget = 256,
    steps: Steps = 8,
    head_scores: Scores = None,
    device: Device = "cuda",
    dtype: Dtype = "bfloat16",
    kernel: Kernel = "auto",
    out: Out = None,
) -> None:
    """Time to the first token, compression included."""
    _run("prefill", locals())


def memory(
    shape: Shape = "vicuna",
    methods: Methods = "fullkv,sparsemm",
    modes: Modes = "dynamic,eager,graph",
    lengths: Lengths = "2048,8192,16384,32000",
    batches: Batches = "1,8",
    budget: Budget = 256,
    steps: Steps = 8,
    head_scores: Scores = None,
    device: Device = "cuda",
    dtype: Dtype = "bfloat16",
    kernel: Kernel = "auto",
    out: Out = None,
) -> None:
    """Peak memory, split into weights, keys and values, and the rest."""
    _run("memory", locals())


def throughput(
    shape: Shape = "vicuna",
    methods: Methods = "fullkv,sparsemm",
    modes: Modes = "dynamic,eager,graph",
    lengths: Lengths = "2300",
    batches: Batches = "1,8",
    budget: Budget = 256,
    steps: Annotated[int, typer.Option(min=1, help="New tokens per sample.")] = 16,
    samples: Annotated[int, typer.Option(min=1, help="Samples that are timed.")] = 32,
    head_scores: Scores = None,
    device: Device = "cuda",
    dtype: Dtype = "bfloat16",
    kernel: Kernel = "auto",
    out: Out = None,
) -> None:
    """Samples per second end to end, prompt and answer."""
    _run("throughput", locals())


def _run(command: str, given: dict[str, Any]) -> None:
    import torch

    from sparsemm_eval.bench.clock import copy_bandwidth
    from sparsemm_eval.bench.grid import latencies, rates
    from sparsemm_eval.bench.model_shapes import build, shape_of
    from sparsemm_eval.bench.report import machine, markdown, save

    shape, grid, where = shape_of(given["shape"]), _grid(given), _device(given["device"])
    if given["dtype"] not in DTYPES:
        raise ConfigError("dtype", given["dtype"], "one of " + ", ".join(DTYPES))
    bandwidth = copy_bandwidth(where)
    typer.echo(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s")
    positions = max(grid.lengths) + grid.steps + 64
    model = build(shape, where, getattr(torch, given["dtype"]), positions)
    scores = _scores(given["head_scores"], shape)
    if command == "throughput":
        rows = rates(model, grid, given["samples"], scores)
    else:
        rows = latencies(model, grid, bandwidth, scores)
    facts = {**machine(where), "shape": shape.title, "dtype": given["dtype"], "copy_bytes_per_s": bandwidth}
    typer.echo(markdown(rows))
    if given["out"] is not None:
        save({**facts, "rows": rows}, given["out"], f"bench-{command}", *QUANTITIES[command])


def _grid(given: dict[str, Any]) -> Any:
    from sparsemm_eval.bench.grid import Grid
    from sparsemm_eval.bench.model_runs import MODES
    from sparsemm_eval.config import METHODS

    return Grid(
        methods=_names("methods", given["methods"], METHODS),
        modes=_names("modes", given["modes"], MODES),
        lengths=listed(Count, "lengths", given["lengths"]),
        batches=listed(Count, "batches", given["batches"]),
        budget=given["budget"],
        steps=given["steps"],
        kernel=given["kernel"],
    )


def _device(name: str) -> Any:
    import torch

    where = torch.device(name)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", name, "cpu: there is no CUDA device here")
    return where


def _scores(given: str | None, shape: Any) -> Any:
    from sparsemm_eval.bench.synthetic_scores import synthetic_scores
    from sparsemm_eval.heads.scores.lookup import resolve

    return synthetic_scores(shape.layers, shape.heads) if given is None else resolve(given)


def _names(argument: str, given: str, known: tuple[str, ...]) -> list[str]:
    names = [name.strip() for name in given.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ConfigError(argument, name, "some of " + ", ".join(known))
    return names
