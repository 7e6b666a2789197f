"""Tracking of cells: opens a W&B run where the study asks for one, and ends it with what came of the cell."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsemm_eval.errors import SparseMMError
from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.folder import StudyFolder, read_json
from sparsemm_eval.study.settings import Wandb


def to_stderr(message: str) -> None:
    """Tell a person."""
    print(message, file=sys.stderr, flush=True)


class _Untracked:
    def poll(self) -> None:
        """Nothing to do."""

    def close(self, failed: str | None = None) -> None:
        """Nothing to do."""


@dataclass(frozen=True)
class Tracking:
    """Where runs of cells are logged to.

    Attributes
    ----------
    wandb : Wandb
    group : str
        The study's name.
    warn : callable
        Takes messages of what did not work; none of it costs a cell its results.
    """

    wandb: Wandb = field(default_factory=Wandb)
    group: str = ""
    warn: Callable[[str], None] = to_stderr

    def check(self) -> None:
        """Refuse what cannot work, before anything starts.

        Raises
        ------
        ConfigError
            For online runs without credentials.
        """
        if self.wandb.mode != "disabled":
            from sparsemm_eval.study import tracking

            tracking.check(self._settings())

    def open(self, study: StudyFolder, cell: Cell) -> Any:
        """Begin the run of a cell, or go on with it."""
        if self.wandb.mode == "disabled":
            return _Untracked()
        from sparsemm_eval.study import tracking

        folder = study.cell(cell.id)
        return tracking.open_tracker(
            self._settings(), read_json(folder.record) or {}, folder.root, warn=self.warn
        )

    def end(self, tracker: Any, study: StudyFolder, cell: Cell, status: Mapping[str, Any] | None) -> None:
        """End a run with the cell's last status; None where the cell was interrupted."""
        if isinstance(tracker, _Untracked):
            return
        if status is None or status["state"] != "done":
            tracker.close(failed=None if status is None else status["error"])
            return
        from sparsemm_eval.study import results

        try:
            cells, samples = results.collect(study.root)
        except (SparseMMError, OSError) as error:
            self.warn(f"W&B: results of {cell.id} were not logged: {error}")
            tracker.close()
            return
        rows = cells[cells["cell"] == cell.id].to_dict("records")
        tracker.finish(rows, samples[samples["cell"] == cell.id])

    def _settings(self) -> Any:
        from sparsemm_eval.study import tracking

        return tracking.TrackingSettings(
            mode=self.wandb.mode, project=self.wandb.project, entity=self.wandb.entity, group=self.group
        )
