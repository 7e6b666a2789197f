"""`sparsemm pages …`: data and experiments with the embedded readers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsemm_eval.command_arguments import whole_numbers
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.files import write_text_atomically
from sparsemm_eval.pages import benchmarks_command

app = typer.Typer(help="Rendered pages and the embedded readers.", no_args_is_help=True)
app.command("benchmarks")(benchmarks_command.command)


@app.command("grid")
def grid(
    out: Annotated[Path, typer.Argument(help="Markdown file to write; a .jsonl of the same name beside it.")],
    reader: Annotated[str, typer.Option(help="A shipped reader.")] = ("tiny-reader"),
    budgets: Annotated[str, typer.Option(help="Entries per KV head, comma-separated.")] = "16,24,32,48,64,96",
    kernel_sizes: Annotated[str, typer.Option(help="Pooling widths, comma-separated.")] = "5,7",
    limit: Annotated[int | None, typer.Option(min=1, help="Documents per task; all by default.")] = None,
) -> None:
    """Score every method over budgets and pooling widths on the page tasks.

    Cells already in the .jsonl are not run again. Example: sparsemm pages grid runs/grid.md --budgets 32,64
    """
    from sparsemm_eval.pages.checkpoints import NAMES
    from sparsemm_eval.pages.grid import Grid, cells, markdown, run

    if reader not in NAMES:
        raise ConfigError("reader", reader, "one of " + ", ".join(NAMES))
    wanted = cells(whole_numbers("budgets", budgets), whole_numbers("kernel_sizes", kernel_sizes))
    outcomes = run(Grid(reader, limit), wanted, out.with_suffix(".jsonl"))
    write_text_atomically(out, markdown(outcomes))
    print(out)
