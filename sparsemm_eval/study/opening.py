"""Opening a study for a command: its file checked, its folder prepared; a mistake ends the command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from sparsemm_eval.errors import SparseMMError
from sparsemm_eval.studies import FOLDER
from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.folder import StudyFolder
from sparsemm_eval.study.settings import Study

USAGE_ERROR = 2


def load(file: Path) -> tuple[Study, list[Cell]]:
    """The study of a file, or of a name that comes with the package; mistakes end the command with code 2."""
    # The wrappers' checks import torch.
    from sparsemm_eval.study import checks

    try:
        shipped = FOLDER / f"{file}.yaml"
        return checks.load(shipped if shipped.is_file() and not file.exists() else file)
    except SparseMMError as error:
        typer.echo(f"sparsemm study: {error}", err=True)
        raise typer.Exit(USAGE_ERROR) from error


def prepare(folder: StudyFolder, study: Study, cells: Sequence[Cell]) -> None:
    """Write the study into its folder; where it cannot be written, that ends the command with code 1."""
    try:
        folder.prepare(study, cells)
    except OSError as error:
        typer.echo(f"sparsemm study: {folder.root} cannot be written: {error}", err=True)
        raise typer.Exit(1) from error


def load_and_prepare(file: Path) -> tuple[Study, StudyFolder, list[Cell]]:
    """Both, for commands that run nothing themselves."""
    study, cells = load(file)
    folder = StudyFolder(study.output)
    prepare(folder, study, cells)
    return study, folder, cells
