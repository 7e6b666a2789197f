"""One cell of a study: what it evaluates, its arguments for lmms-eval, and its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsemm_eval.lmms.arguments import command_line


@dataclass(frozen=True)
class Cell:
    """One evaluation: one process of lmms-eval."""

    id: str  # name of its folder
    study: str
    model: str  # its name in the study
    family: str
    method: str  # suffix of the model name
    pretrained: str
    budget: int | None  # None where the method has none
    seed: int | None
    tasks: tuple[str, ...]
    knobs: Mapping[str, Any]  # the study's that take part
    model_args: Mapping[str, Any]  # all, without the folders that belong to a place on disk
    limit: int | None
    batch_size: int
    nproc: int
    include_path: str | None  # folder of the user's own tasks
    #: All that determines the result, by name: settings, code, versions, weights, head scores, data.
    identity: Mapping[str, Any]
    hash: str  # hex SHA-256 of it
    #: What changes a FullKV run; equal for the cells that can be compared with each other.
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
