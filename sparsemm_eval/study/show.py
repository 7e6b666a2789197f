"""`sparsemm study show`: a study's tables on standard output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def show_command(
    folder: Annotated[Path, typer.Argument(help="Study folder.", metavar="DIR")],
    format: Annotated[str, typer.Option("--format", "-f", help="text, markdown, latex or json.")] = "text",
    table: Annotated[str, typer.Option("--table", "-t", help="main, ablation, rho or all.")] = "all",
) -> None:
    """Print a study's tables, published numbers beside ours where model and task are the paper's.

    Examples: `sparsemm study show runs/tiny`, `sparsemm study show runs/tiny --format latex --table main`.
    """
    # pandas takes a second to import, and every command would pay for it.
    from sparsemm_eval.errors import EvaluationError
    from sparsemm_eval.study.results import collect
    from sparsemm_eval.study.table_formats import write_tables
    from sparsemm_eval.study.tables import of_kind

    tables = of_kind(*collect(folder), table)
    if not tables:
        raise EvaluationError(f"{folder} has no {table} table: no knob of that kind has several values")
    typer.echo(write_tables(tables, format))
