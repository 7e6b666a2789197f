"""The page of a study: one HTML file that needs nothing but a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsemm_eval.study.report.page import write


def report_command(
    folder: Annotated[Path, typer.Argument(help="Study folder.", metavar="DIR")],
    out: Annotated[Path | None, typer.Option(help="File to write. Default: DIR/report.html.")] = None,
    open: Annotated[bool, typer.Option("--open/--no-open", help="Show it in the browser.")] = False,
) -> None:
    """Write a study's page: curves, memory, heads, disagreements, in one file without network.

    Examples: `sparsemm report runs/tiny --open`, `sparsemm report runs/tiny --out tiny.html`.
    """
    path = write(folder, out)
    typer.echo(str(path))
    if open:
        typer.launch(path.resolve().as_uri())


__all__ = ["report_command", "write"]
