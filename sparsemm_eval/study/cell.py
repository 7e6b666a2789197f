"""One cell of a study: what it evaluates, its arguments for lmms-eval, and its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsemm_eval.lmms.arguments import command_line


@dataclass(frozen=True)
class Cell:
    """One evaluation: one process of lmms-eval.

    Attributes
    ----------
    id : str
        Name of its folder.
    study : str
    model, family, method : str
        The model's label, ``llava`` or ``qwen2vl``, and the suffix of the model name.
    pretrained : str
    budget, seed : int or None
        None where the method has none.
    tasks : tuple of str
    knobs : mapping
        The study's knobs that take part.
    model_args : mapping
        All of them, without the folders that belong to a place on disk.
    limit : int or None
    batch_size, nproc : int
    include_path : str or None
        Folder of the user's own tasks.
    identity : mapping
        All that determines the result, by name: settings, code, versions, weights, head scores, data.
    hash : str
        Hex SHA-256 of it.
    comparison : mapping
        What changes a FullKV run; equal for the cells that can be compared with each other.
    """

    id: str
    study: str
    model: str
    family: str
    method: str
    pretrained: str
    budget: int | None
    seed: int | None
    tasks: tuple[str, ...]
    knobs: Mapping[str, Any]
    model_args: Mapping[str, Any]
    limit: int | None
    batch_size: int
    nproc: int
    include_path: str | None
    identity: Mapping[str, Any]
    hash: str
    comparison: Mapping[str, Any]

    @property
    def model_name(self) -> str:
        """lmms-eval's name of the model."""
        return f"{self.family}_{self.method}"

    def arguments(self, folder: Path) -> list[str]:
        """lmms-eval's arguments; ``folder`` is the cell's: journal, measurements and results go below it."""
        places = {"journal": folder / "journal", "stats_dir": folder / "stats"}
        line = command_line(
            self.model_name,
            {name: _text(value) for name, value in {**self.model_args, **places}.items()},
            tasks=",".join(self.tasks),
            batch_size=self.batch_size,
            output_path=folder / "lmms",
            limit=self.limit,
            include_path=self.include_path,
        )
        return [*line, "--log_samples"]

    def record(self, folder: Path) -> dict[str, Any]:
        """The cell as JSON types, for ``cell.json``."""
        return {**vars(self), "model_name": self.model_name, "arguments": self.arguments(folder)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Cell:
        """A cell back from its ``cell.json``."""
        own = {name: record[name] for name in cls.__dataclass_fields__}
        return cls(**{**own, "tasks": tuple(own["tasks"])})


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
