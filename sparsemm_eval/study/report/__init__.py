"""`sparsemm report`: the page of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsemm_eval.files import check_target, users_path
from sparsemm_eval.study.commands import Folders
from sparsemm_eval.study.report.page import write


def report_command(
    folders: Folders,
    out: Annotated[
        Path | None, typer.Option(help="File to write. Default: DIR/report.html.", parser=users_path)
    ] = None,
    open: Annotated[bool, typer.Option("--open/--no-open", help="Show it in the browser.")] = False,
) -> None:
    """Write a study's page: who wins at which budget, figures, tables, documents; one file, no network.

    Examples: `sparsemm report runs/tiny --open`, `sparsemm report runs/tiny runs/more --out both.html`.
    """
    if out is not None:
        check_target("out", out)
    path = write(folders, out)
    typer.echo(str(path))
    if open:
        typer.launch(path.resolve().as_uri())


__all__ = ["report_command", "write"]
