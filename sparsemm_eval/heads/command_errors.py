"""How the commands under ``sparsemm heads`` tell what a user can put right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def errors_as_text() -> Iterator[None]:
    """One line and exit code 2 instead of a traceback."""
    from sparsemm_eval.errors import SparseMMError

    try:
        yield
    except (SparseMMError, FileNotFoundError) as error:
        typer.echo(f"sparsemm: {error}", err=True)
        raise typer.Exit(2) from error
