"""Where the tracking of a cell stands, how long it may wait, and the tracker that does nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Limits:
    """How long W&B is waited for, in seconds.

    Attributes
    ----------
    open : float
        For the run to be there; asked for at the cell's end, the cell itself does not wait.
    results : float
        For the results to be taken; online this uploads the table of samples.
    close : float
        For everything to be uploaded; offline this is a moment.
    interrupt : float
        For each of these when the study was interrupted: somebody waits for it to end.
    """

    open: float = 120.0
    results: float = 600.0
    close: float = 600.0
    interrupt: float = 15.0

    def interrupted(self) -> Limits:
        """Each at most ``interrupt``."""
        names = ("open", "results", "close")
        return replace(self, **{name: min(getattr(self, name), self.interrupt) for name in names})


@dataclass(frozen=True)
class TrackingState:
    """Where the tracking of a cell stands; kept in the cell's ``tracking.json``.

    Attributes
    ----------
    state : str
        ``disabled``, ``opening``, ``open``, ``finished``, ``closed`` (before its results were known) or
        ``failed``.
    problem : str or None
        What went wrong.
    run_id : str or None
        W&B's id, the cell's own (`run_id`) or, under `wandb agent`, the sweep's.
    step : int
        Last step of W&B's history that was used, over all sessions; -1 before the first.
    samples : int
        Answers at the last point of the history.
    sessions : int
        How often the run was opened.
    folder : str or None
        W&B's folder of the latest session, relative to the study.
    """

    state: str
    problem: str | None = None
    run_id: str | None = None
    step: int = -1
    samples: int = 0
    sessions: int = 0
    folder: str | None = None


class NullTracker:
    """The tracker of a study without W&B."""

    state = TrackingState("disabled")

    def poll(self) -> TrackingState:
        """Nothing to do."""
        return self.state

    def finish(self, rows: Sequence[Mapping[str, Any]], samples: pd.DataFrame) -> TrackingState:
        """Nothing to do."""
        return self.state

    def close(self, failed: str | None = None) -> TrackingState:
        """Nothing to do."""
        return self.state
