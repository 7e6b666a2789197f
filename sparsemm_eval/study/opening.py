"""Opening a study for a command: its file checked, its folder prepared."""

from __future__ import annotations

from pathlib import Path

from sparsemm_eval.studies import FOLDER
from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.folder import StudyFolder
from sparsemm_eval.study.settings import Study


def load(file: Path) -> tuple[Study, list[Cell]]:
    """The study of a file, or of a name that comes with the package.

    Raises
    ------
    SparseMMError
        If the study cannot work.
    """
    # The wrappers' checks import torch.
    from sparsemm_eval.study import checks

    shipped = FOLDER / f"{file}.yaml"
    return checks.load(shipped if shipped.is_file() and not file.exists() else file)


def load_and_prepare(file: Path) -> tuple[Study, StudyFolder, list[Cell]]:
    """The study, and its folder with the study written into it."""
    study, cells = load(file)
    folder = StudyFolder(study.output)
    folder.prepare(study, cells)
    return study, folder, cells
