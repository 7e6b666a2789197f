"""`sparsemm pages …`: data and experiments with the embedded readers."""

from __future__ import annotations

import typer

from sparsemm_eval.pages.benchmarks import command as benchmarks_command

app = typer.Typer(help="Rendered pages and the embedded readers.", no_args_is_help=True)
app.command("benchmarks")(benchmarks_command.command)
