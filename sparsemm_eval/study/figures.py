"""`sparsemm study figures`: a study's curves as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def figures_command(
    folder: Annotated[Path, typer.Argument(help="Study folder.", metavar="DIR")],
    out: Annotated[Path | None, typer.Option(help="Folder to write to. Default: DIR/figures.")] = None,
    ending: Annotated[str, typer.Option("--format", "-f", help="png or svg.")] = "png",
) -> None:
    """Draw score against effective budget, one file per task: a panel per model and crossed knob.

    Example: `sparsemm study figures runs/tiny --format svg`.
    """
    # pandas takes a second to import, and every command would pay for it.
    from sparsemm_eval.study.curves import save_curves
    from sparsemm_eval.study.results import collect

    for path in save_curves(*collect(folder), out or folder / "figures", ending):
        typer.echo(str(path))
