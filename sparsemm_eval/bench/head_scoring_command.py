"""``sparsemm bench heads``: finding visual heads against the literal way of doing it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

EPILOG = """Examples:

sparsemm bench heads

sparsemm bench heads --model random-llava-next-7b --device cuda --dtype bfloat16 --anchor documents
--modes teacher --images 1000 --literal-images 0 --batch-sizes 8"""


def command(
    model: Annotated[
        str, typer.Option(help="Shipped reader, hub id, folder, or random-llava-next-7b.")
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

    from sparsemm_eval.bench import head_scoring, random_model
    from sparsemm_eval.checks import Count, listed
    from sparsemm_eval.errors import ConfigError
    from sparsemm_eval.heads.anchors.registry import anchor_named
    from sparsemm_eval.heads.scoring.batch_scores import ScoringRule
    from sparsemm_eval.model import checkpoint
    from sparsemm_eval.model.placement import DTYPES, place

    if literal_images > images:
        raise ConfigError("literal_images", literal_images, f"at most images={images}")
    source, sizes = anchor_named(anchor), listed(Count, "batch_sizes", batch_sizes)
    rules = [
        ScoringRule(mode.strip(), source.rule, max_new_tokens=max_new_tokens) for mode in modes.split(",")
    ]
    if model == random_model.NAME:
        if dtype not in DTYPES[1:]:
            raise ConfigError("dtype", dtype, "one of " + ", ".join(DTYPES[1:]) + " for random weights")
        loaded = random_model.random_llava_next_7b(device, getattr(torch, dtype))
    else:
        found = checkpoint.load(checkpoint.find(model, argument="model"), place(device, None, dtype))
        loaded = (found.model, found.processor)
    rows = [
        row
        for rule in rules
        for row in head_scoring.measure(*loaded, source, rule, sizes, images, literal_images, seed)
    ]
    memory = None
    if loaded[0].device.type == "cuda":
        samples = [source.sample(seed, index) for index in range(min(images, max(sizes)))]
        memory = head_scoring.peak_memory(*loaded, samples)
    if as_json:
        record = {"rows": [asdict(row) for row in rows], "memory": memory and asdict(memory)}
        typer.echo(json.dumps(record, indent=2))
        return
    _print(rows, f"{model}, anchor {anchor}, {dtype}, {device}, {torch.get_num_threads()} threads")
    if memory is not None:
        typer.echo(
            f"peak memory beyond the weights, {memory.tokens} tokens: plain prefill "
            f"{memory.prefill / 2**20:.0f} MiB, scoring pass {memory.probe / 2**20:.0f} MiB "
            f"({memory.probe / memory.prefill:.2f}x)"
        )


def _print(rows: list, title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in ("mode", "batch", "images", "ms/image", "literal ms/image", "ratio", "same scores"):
        table.add_column(name, justify="right")
    for row in rows:
        measured = row.same is not None
        table.add_row(
            row.mode,
            str(row.batch_size),
            str(row.images),
            f"{1000 * row.ours:.1f}",
            f"{1000 * row.literal:.1f} ({row.literal_images} images)" if measured else "not run",
            f"{row.ratio:.1f}" if measured else "",
            {True: "yes", False: "no", None: ""}[row.same],
        )
    Console().print(table)
