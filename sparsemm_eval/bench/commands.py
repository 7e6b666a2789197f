"""`sparsemm bench …`: measurements on this machine."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict
from os.path import expanduser
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsemm_eval.checks import Count, Natural, checked, listed, one_of, whole
from sparsemm_eval.errors import ConfigError, reason_of
from sparsemm_eval.files import check_target, users_path

app = typer.Typer(help="Measure speed and memory on this machine.", no_args_is_help=True)

DTYPES = ("float32", "bfloat16", "float16")


def _option(kind: Any, default: Any, meaning: str, **limits: Any) -> tuple[Any, Any]:
    return Annotated[kind, typer.Option(help=meaning, **limits)], default


#: Options of all commands over whole models, and what they are where a command says nothing else.
OPTIONS: dict[str, tuple[Any, Any]] = {
    "shape": _option(str, "vicuna", "vicuna, mistral, qwen2vl, smol or tiny."),
    "methods": _option(str | None, None, "Methods, comma-separated; default FullKV and SparseMM."),
    "modes": _option(
        str,
        "dynamic,eager,graph",
        "dynamic and static (FullKV only), eager, graph, fused; comma-separated.",
    ),
    "lengths": _option(str, "2048,8192,16384,32000", "Prompt tokens, comma-separated."),
    "batches": _option(str, "1", "Sequences at once, comma-separated."),
    "budget": _option(int, 256, "Mean entries per KV head.", min=2),
    "steps": _option(int, 8, "Decode steps that are timed.", min=1),
    "head_scores": _option(
        str | None, None, "Head scores: file or name; default a synthetic table.", parser=expanduser
    ),
    "device": _option(str, "cuda", "auto, cpu, cuda, cuda:1 …"),
    "dtype": _option(str, "bfloat16", "float32, bfloat16 or float16."),
    "kernel": _option(str, "auto", "auto, torch or triton."),
    "out": _option(Path | None, None, "Folder for JSON, Markdown and a plot.", parser=users_path),
}


# for signatures that are written out
_Shape, _Lengths, _Budget, _Device, _Dtype, _Out = (
    OPTIONS[name][0] for name in ("shape", "lengths", "budget", "device", "dtype", "out")
)


def _model_command(name: str, quantity: str, label: str, meaning: str, **own: Any) -> None:
    """Add a command over whole models with random weights, whose plot shows a quantity under a label.

    ``own`` are defaults of its own, or whole options. typer reads the options from the signature.
    """
    options = OPTIONS | {
        option: given if isinstance(given, tuple) else (OPTIONS[option][0], given)
        for option, given in own.items()
    }

    def run(**given: Any) -> None:
        _measure(name, quantity, label, given)

    run.__signature__ = inspect.Signature(
        [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
            for option, (kind, default) in options.items()
        ]
    )
    app.command(name, help=meaning)(run)


_model_command(
    "decode",
    "ms_per_token",
    "ms per token",
    "Time per token beside the least time in which the memory gives all bytes that must be read.\n\n"
    "Example: sparsemm bench decode --shape tiny --device cpu --dtype float32 --lengths 64 --budget 40",
    steps=64,
)
_model_command(
    "prefill",
    "prefill_ms",
    "prefill, ms",
    "Time to the first token, compression included.",
    modes="dynamic,eager",
)
_model_command(
    "memory",
    "kv",
    "bytes held for keys and values",
    "Peak memory, split into weights, keys and values, and the rest.",
    batches="1,8",
)
_model_command(
    "throughput",
    "samples_per_s",
    "samples per second",
    "Samples per second end to end, prompt and answer.",
    lengths="2300",
    batches="1,8",
    steps=_option(int, 16, "New tokens per sample.", min=1),
    samples=_option(int, 32, "Samples that are timed.", min=1),
)


def _measure(command: str, quantity: str, label: str, given: dict[str, Any]) -> None:
    from sparsemm_eval.bench import model_runs, report
    from sparsemm_eval.bench.clock import memory_bandwidths
    from sparsemm_eval.bench.random_models import SHAPES, build, synthetic_scores
    from sparsemm_eval.heads.scores.lookup import resolve
    from sparsemm_eval.kernels.dispatch import choose
    from sparsemm_eval.methods import fullkv, methods, sparsemm
    from sparsemm_eval.model.placement import device_named

    shape = SHAPES[checked(one_of(*SHAPES), "shape", given["shape"])]
    where, dtype = device_named(given["device"]), _dtype(given["dtype"])
    choose(given["kernel"], where)
    if given["out"] is not None:
        check_target("out", given["out"], folder=True)
    lengths, steps = listed(Count, "lengths", given["lengths"]), checked(Count, "steps", given["steps"])
    checked(Count, "samples", given.get("samples", 1))
    modes = _names("modes", given["modes"], model_runs.MODES)
    default = f"{fullkv.METHOD.name},{sparsemm.METHOD.name}"
    settings = model_runs.combinations(
        _names("methods", given["methods"] or default, methods()),
        [mode for mode in modes if mode != "static" or command != "throughput"],
        lengths,
        listed(Count, "batches", given["batches"]),
        budget=given["budget"],
        steps=steps,
        kernel=given["kernel"],
    )
    if not settings:
        raise ConfigError("modes", given["modes"], "one that runs a method of --methods")
    own = given["head_scores"]
    scores = resolve(own) if own else synthetic_scores(shape.layers, shape.heads)
    scores.check_fits(shape.layers, shape.heads)
    for setting in settings:
        setting.compression(scores)
    bandwidths = memory_bandwidths(where)
    found = ", ".join(f"{name} {rate / 1e9:.1f} GB/s" for name, rate in bandwidths.items())
    typer.echo(f"measured memory bandwidth, of which the highest counts: {found}")
    model = build(shape, where, dtype, max(lengths) + steps + 64)

    def run(setting: model_runs.Setting) -> dict[str, Any]:
        rate = model_runs.samples_per_second(model, setting, steps, given["samples"], scores)
        return {**asdict(setting), "samples_per_s": rate}

    if command == "throughput":
        rows = [model_runs.guarded(setting, run) for setting in settings]
    else:
        rows = model_runs.measure_all(model, settings, max(bandwidths.values()), scores)
    typer.echo(report.markdown(rows))
    if given["out"] is not None:
        facts = {"shape": shape.title, "dtype": given["dtype"], "memory_bytes_per_s": bandwidths}
        content = {**report.machine(where), **facts, "rows": rows}
        report.save(content, given["out"], f"bench-{command}", report.markdown(rows))
        report.plot(rows, quantity, label, given["out"] / f"bench-{command}.png")


def _dtype(name: str) -> Any:
    import torch

    return getattr(torch, checked(one_of(*DTYPES), "dtype", name))


def _names(argument: str, given: str, known: Sequence[str]) -> list[str]:
    return [checked(one_of(*known), argument, name.strip()) for name in given.split(",")]


HEADS_EPILOG = """Examples:

sparsemm bench heads

sparsemm bench heads --model random-llava-next-7b --device cuda --dtype bfloat16 --anchor documents
--modes teacher --images 1000 --literal-images 0 --batch-sizes 8"""


@app.command("heads", epilog=HEADS_EPILOG)
def heads(
    model: Annotated[
        str, typer.Option(help="Shipped reader, hub id, folder, or random-llava-next-7b.", parser=expanduser)
    ] = "tiny-reader",
    anchor: Annotated[str, typer.Option(help="A built-in anchor.")] = "pages",
    modes: Annotated[str, typer.Option(help="teacher, generate, or both.")] = "teacher,generate",
    batch_sizes: Annotated[str, typer.Option(help="Of this package, comma-separated.")] = "1,4,16",
    images: Annotated[int, typer.Option(min=1, help="Images that this package scores.")] = 48,
    literal_images: Annotated[
        int, typer.Option(min=0, help="How many of them the literal way scores; 0: it is not run.")
    ] = 12,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length limit of answers.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Names the images.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Scoring heads in one pass, against eager attention, token by token, with a loop over all heads.

    Seconds on a CPU are the processor's, of all threads: set OMP_NUM_THREADS=1 to compare them.
    """
    import torch

    from sparsemm_eval.bench import head_scoring, random_models
    from sparsemm_eval.heads.anchors.registry import anchor_named
    from sparsemm_eval.heads.scoring.batch_scores import ScoringRule
    from sparsemm_eval.model import checkpoint
    from sparsemm_eval.model.placement import device_named, place

    checked(Count, "images", images)
    checked(Natural, "seed", seed)
    if literal_images > images:
        raise ConfigError("literal_images", literal_images, f"at most images={images}")
    source, sizes = anchor_named(anchor), listed(Count, "batch_sizes", batch_sizes)
    rules = [
        ScoringRule(mode.strip(), source.rule, max_new_tokens=max_new_tokens) for mode in modes.split(",")
    ]
    if model == random_models.LLAVA_NEXT_7B:
        loaded = random_models.random_llava_next_7b(device_named(device), _dtype(dtype))
    else:
        found = checkpoint.load(checkpoint.find(model, argument="model"), place(device, None, dtype))
        loaded = (found.model, found.processor)
    rows = [
        row
        for rule in rules
        for row in head_scoring.measure(*loaded, source, rule, sizes, images, literal_images, seed)
    ]
    if as_json:
        typer.echo(json.dumps({"rows": [asdict(row) for row in rows]}, indent=2))
        return
    _print_table(
        f"{model}, anchor {anchor}, {dtype}, {device}, {torch.get_num_threads()} threads",
        ("mode", "batch", "images", "ms/image", "literal ms/image", "ratio", "same scores"),
        [row.cells() for row in rows],
    )


@app.command("attention")
def attention(
    budgets: Annotated[str, typer.Option(help="Mean entries per KV head, comma-separated.")] = "256,1024",
    groups: Annotated[str, typer.Option(help="Query heads per KV head, comma-separated.")] = "1,4,7",
    kv_heads: Annotated[int, typer.Option(min=1, help="KV heads.")] = 32,
    head_dim: Annotated[int, typer.Option(min=1, help="Head dimension.")] = 128,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of each.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Decode attention of one layer: ragged heads against dense SDPA over the same number of entries.

    Example: sparsemm bench attention --budgets 256 --groups 1,7
    """

    from sparsemm_eval.bench.decode_attention import Shape, measure
    from sparsemm_eval.model.placement import device_named

    kind, where = _dtype(dtype), device_named(device)
    for name, value in (("kv_heads", kv_heads), ("head_dim", head_dim), ("rounds", rounds)):
        checked(Count, name, value)
    sizes, shares = listed(Count, "budgets", budgets), listed(Count, "groups", groups)
    shapes = [Shape(kv_heads, group, head_dim, budget, kind) for budget in sizes for group in shares]
    rows = [measure(shape, rounds=rounds, device=where) for shape in shapes]
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], default=str, indent=2))
        return
    _print_table(
        f"One decode step's attention, {kv_heads} KV heads x {head_dim}, {dtype}, {device}",
        ("mean entries", "longest", "group", "SDPA ms", "SDPA rows ms", "ragged ms", "/ SDPA", "/ rows"),
        [row.cells() for row in rows],
    )


@app.command("methods")
def methods_command(
    shape: _Shape = "smol",
    layers: Annotated[int, typer.Option(min=1, help="Layers of the model, at most the shape's own.")] = 4,
    methods: Annotated[str | None, typer.Option(help="Comma-separated; default all that evict.")] = None,
    lengths: _Lengths = "1024,4096",
    budget: _Budget = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Timed prefills of each.")] = 5,
    device: _Device = "cpu",
    dtype: _Dtype = "float32",
    out: _Out = None,
) -> None:
    """What a method costs while a prompt is read: time and memory beside FullKV's, and waits for the device.

    Example: sparsemm bench methods --lengths 1024
    """
    from sparsemm_eval.bench import method_costs, report
    from sparsemm_eval.bench.random_models import SHAPES, build, synthetic_scores
    from sparsemm_eval.methods import methods as known
    from sparsemm_eval.model.placement import device_named

    kind, where = SHAPES[checked(one_of(*SHAPES), "shape", shape)], device_named(device)
    layers = checked(whole(1, kind.layers), "layers", layers)
    evicting = [method.name for method in known().values() if method.evicts]
    chosen = _names("methods", methods or ",".join(evicting), evicting)
    sizes = listed(whole(budget + 1), "lengths", lengths)
    if out is not None:
        check_target("out", out, folder=True)
    model = build(kind, where, _dtype(dtype), max(sizes) * 2 + 64, layers)
    scores, costs = synthetic_scores(layers, kind.heads), []
    for length in sizes:
        for cost in method_costs.measure(model, chosen, length, budget, rounds, scores):
            costs.append(cost)
            typer.echo(f"{cost.method} {length}: {cost.times_fullkv:.2f} times FullKV's prefill", err=True)
    typer.echo(method_costs.markdown(costs))
    if out is not None:
        facts = {**report.machine(where), "shape": kind.title, "layers": layers, "dtype": dtype}
        content = {**facts, "rows": [asdict(cost) for cost in costs]}
        report.save(content, out, "bench-methods", method_costs.markdown(costs))


@app.command("compare")
def compare(
    old: Annotated[
        Path, typer.Argument(help="Result file: bench-….json or gpu_suite.json.", parser=users_path)
    ],
    new: Annotated[Path, typer.Argument(help="A later one of the same command.", parser=users_path)],
    slower: Annotated[float, typer.Option(help="Fail beyond this ratio.")] = 1.1,
) -> None:
    """Compare two result files as ratios, new over old; exit status 1 if anything became slower than allowed.

    Example: sparsemm bench compare before/bench-decode.json after/bench-decode.json --slower 1.05
    """
    from sparsemm_eval.bench import report

    contents = []
    for name, path in (("old", old), ("new", new)):
        try:
            contents.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(
                name, str(path), f"a result file of sparsemm bench ({reason_of(error)})"
            ) from error
    rows = report.compare(*contents)
    if not rows:
        raise ConfigError("new", str(new), f"a file that measured something of what {old} did")
    devices = [report.device_of(content) for content in contents]
    if devices[0] != devices[1]:
        typer.echo(f"Measured on different devices: {devices[0]}, then {devices[1]}.", err=True)
    cells = [[row["what"], row["figure"], f"{row['slower']:.2f}"] for row in rows]
    _print_table("new / old, above 1 is worse", ("what", "figure", "ratio"), cells)
    worst = max(rows, key=lambda row: row["slower"])
    if worst["slower"] > slower:
        typer.echo(
            f"{worst['figure']} of {worst['what']}: {worst['slower']:.2f}, more than {slower}", err=True
        )
        raise typer.Exit(1)


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from sparsemm_eval.bench.report import table

    typer.echo(f"{title}\n\n{table(columns, rows)}")
