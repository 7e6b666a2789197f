"""`sparsemm bench …`: measurements on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from sparsemm_eval.bench import head_scoring_command, model_commands
from sparsemm_eval.checks import Count, listed
from sparsemm_eval.errors import ConfigError

app = typer.Typer(help="Measure speed and memory on this machine.", no_args_is_help=True)

model_commands.add_to(app)

DTYPES = ("float32", "bfloat16", "float16")


app.command("heads", epilog=head_scoring_command.EPILOG)(head_scoring_command.command)


@app.callback()
def bench() -> None:
    """Measure speed and memory on this machine."""


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
    import torch
    from rich.console import Console
    from rich.table import Table

    from sparsemm_eval.bench.decode_attention import measure, shapes

    if dtype not in DTYPES:
        raise ConfigError("dtype", dtype, "one of " + ", ".join(DTYPES))
    where = torch.device(device)
    grid = shapes(
        tuple(listed(Count, "budgets", budgets)),
        tuple(listed(Count, "groups", groups)),
        kv_heads,
        head_dim,
        getattr(torch, dtype),
    )
    rows = [measure(shape, rounds=rounds, device=where) for shape in grid]
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], default=str, indent=2))
        return
    table = Table(title=f"One decode step's attention, {kv_heads} KV heads x {head_dim}, {dtype}, {device}")
    names = ("mean entries", "longest", "group", "SDPA ms", "SDPA rows ms", "ragged ms", "/ SDPA", "/ rows")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        times = [f"{ms:.3f}" for ms in (row.dense_ms, row.rows_ms, row.ragged_ms)]
        ratios = [f"{row.ragged_ms / rival:.2f}" for rival in (row.dense_ms, row.rows_ms)]
        table.add_row(str(row.shape.budget), str(row.longest), str(row.shape.group), *times, *ratios)
    Console().print(table)
