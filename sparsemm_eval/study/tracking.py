"""One W&B run per cell: opened when the cell starts, fed while it runs, completed with its results.

Nothing here can lose a cell: whatever goes wrong with W&B is reported at once, kept in the state, and ends
the tracking of this cell only.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsemm_eval.files import write_text_atomically
from sparsemm_eval.study import tracking_figures
from sparsemm_eval.study.tracking_history import History, ScoreOf, running_scores
from sparsemm_eval.study.tracking_media import ImageOf
from sparsemm_eval.study.tracking_pages import Pages
from sparsemm_eval.study.tracking_process import SessionError, SessionProcess, without_secrets
from sparsemm_eval.study.tracking_results import write_payload
from sparsemm_eval.study.tracking_settings import TrackingSettings, check
from sparsemm_eval.study.tracking_state import Limits, NullTracker, TrackingState

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Limits",
    "NullTracker",
    "Tracker",
    "TrackingSettings",
    "TrackingState",
    "check",
    "open_tracker",
    "run_id",
]

STATE_FILE = "tracking.json"
LOG_FILE = "tracking.log"


def open_tracker(
    settings: TrackingSettings,
    cell: Mapping[str, Any],
    folder: Path,
    *,
    image_of: ImageOf | None = None,
    score_of: ScoreOf | None = None,
    warn: Callable[[str], None] | None = None,
    limits: Limits | None = None,
) -> Tracker | NullTracker:
    """Start tracking a cell; returns at once, W&B starts beside the cell.

    Parameters
    ----------
    settings : TrackingSettings
    cell : mapping
        ``cell.json``.
    folder : path-like
        The cell's folder, ``STUDY/cells/<id>``; W&B's own files go to ``STUDY/wandb``.
    image_of : callable, optional
        (task, doc_id) -> PIL image or None, for the table of samples; the page tasks' images by default.
    score_of : callable, optional
        (task, doc_id, answer) -> score or None, for the running score; the page tasks' by default.
    warn : callable, optional
        Gets every problem as text; by default it is printed to standard error.
    limits : Limits, optional

    Returns
    -------
    Tracker or NullTracker
        Its methods never raise; they return the `TrackingState`.
    """
    if settings.mode == "disabled":
        return NullTracker()
    pages = Pages()
    return Tracker(
        settings,
        cell,
        Path(folder),
        image_of or pages.image,
        score_of or pages.score,
        warn or _to_stderr,
        limits or Limits(),
    )


def run_id(cell: Mapping[str, Any]) -> str:
    """W&B's id of a cell's run: the first 16 digits of the cell's hash, so a resumed cell finds its run."""
    return cell["hash"][:16]


class Tracker:
    """Tracks one cell; made by `open_tracker`. Its methods may be called from different threads."""

    def __init__(
        self,
        settings: TrackingSettings,
        cell: Mapping[str, Any],
        folder: Path,
        image_of: ImageOf,
        score_of: ScoreOf,
        warn: Callable[[str], None],
        limits: Limits,
    ):
        self.settings, self.cell, self.folder, self.limits = settings, cell, folder.resolve(), limits
        self._study = self.folder.parent.parent
        self._image_of, self._score_of, self._warn = image_of, score_of, warn
        self._lock = threading.RLock()
        self._session: SessionProcess | None = None
        self._history: History | None = None
        self.state = TrackingState("opening", run_id=run_id(cell))
        self._guarded(self._open)

    def poll(self) -> TrackingState:
        """Log what the cell has done since the last call; never waits for W&B."""
        # Another thread may be waiting for W&B in finish or close.
        if not self._lock.acquire(blocking=False):
            return self.state
        try:
            return self._guarded(self._poll)
        finally:
            self._lock.release()

    def finish(self, rows: Sequence[Mapping[str, Any]], samples: pd.DataFrame) -> TrackingState:
        """Log the results and end the run.

        Parameters
        ----------
        rows : sequence of mappings
            The cell's rows of the results table, one per task.
        samples : pandas.DataFrame
            The cell's rows of the samples table.
        """
        return self._guarded(lambda: self._finish(rows, samples))

    def close(self, failed: str | None = None) -> TrackingState:
        """End the run without results, if it has not ended; a later session of the cell goes on with it.

        Parameters
        ----------
        failed : str, optional
            Why the cell failed; without it the cell was interrupted.
        """
        return self._guarded(lambda: self._close(failed))

    def _guarded(self, action: Callable[[], None]) -> TrackingState:
        with self._lock:
            if self.state.state in ("opening", "open"):
                try:
                    action()
                except Exception as error:
                    self._fail(error)
            return self.state

    def _fail(self, error: Exception) -> None:
        # Any error at all: the cell is worth more than its tracking.
        known = isinstance(error, (SessionError, OSError))
        problem = without_secrets(str(error) if known else f"{type(error).__name__}: {error}")
        self.state = replace(self.state, state="failed", problem=problem)
        self._warn(
            f"W&B: cell {self.cell['id']} is not tracked any further: {problem} (the cell itself goes on)"
        )
        try:
            with (self.folder / LOG_FILE).open("a", encoding="utf-8") as log:
                log.write(without_secrets("".join(traceback.format_exception(error))))
            self._keep()
        except OSError as second:
            self._warn(f"W&B: cell {self.cell['id']}: this cannot be written down either: {second}")
        if self._session is not None:
            # What was logged before may still reach its place.
            self._session.end(timeout=self.limits.interrupt)

    def _open(self) -> None:
        earlier = self._earlier()
        self.state = replace(
            self.state, step=earlier.step, samples=earlier.samples, sessions=earlier.sessions + 1
        )
        self._session = SessionProcess(self._study / "wandb", self.folder / LOG_FILE)
        self._session.send(
            "open",
            mode=self.settings.mode,
            project=self.settings.project,
            entity=self.settings.entity,
            group=self.settings.group or self.cell["study"],
            run_id=self.state.run_id,
            name=self.cell["id"],
            tags=_tags(self.cell),
            config=tracking_figures.cell_config(self.cell),
            folder=str(self._study),
        )
        self._history = History(self.folder, self._score_of, logged=self.state.samples)
        self._keep()

    def _poll(self) -> None:
        if self._settled(timeout=0):
            self._log_point()

    def _settled(self, timeout: float) -> bool:
        """Whether the session has nothing under way; waits up to ``timeout`` seconds for each reply."""
        while self._session.busy:
            reply = self._session.reply(timeout)
            if reply is None:
                return False
            if self.state.state == "opening":
                # Online, the run may have got further than this folder knows of.
                step = max(self.state.step, reply["step"] - 1)
                folder = Path(reply["folder"])
                inside = folder.is_relative_to(self._study)
                shown = str(folder.relative_to(self._study) if inside else folder)
                self.state = replace(self.state, state="open", run_id=reply["id"], step=step, folder=shown)
                self._keep()
        # A process that died while nothing was asked of it is noticed here.
        self._session.require_alive()
        return True

    def _log_point(self) -> None:
        point = self._history.point()
        if point is None:
            return
        self._session.send("log", step=self._next_steps(1, int(point["progress/samples"]))[0], values=point)

    def _next_steps(self, count: int, samples: int | None = None) -> list[int]:
        """New steps, written down before they are used: no session uses one twice."""
        first = self.state.step + 1
        known = self.state.samples if samples is None else samples
        self.state = replace(self.state, step=self.state.step + count, samples=known)
        self._keep()
        return list(range(first, first + count))

    def _finish(self, rows: Sequence[Mapping[str, Any]], samples: pd.DataFrame) -> None:
        self._wait_until_open()
        self._log_point()
        self._session.wait(self.limits.results, "log")
        scores = running_scores(samples)
        *steps, media_step = self._next_steps(len(scores) + 1)
        # Below W&B's folder, not in a temporary one: what a killed process leaves behind is in plain sight.
        staging = self._study / "wandb" / "staging" / f"{self.state.run_id}-{self.state.sessions}"
        staging.mkdir(parents=True, exist_ok=True)
        history = [{"step": step, "values": row} for step, row in zip(steps, scores, strict=True)]
        path = write_payload(
            self.cell, self.folder, rows, samples, history, media_step, self._image_of, staging
        )
        self._session.call("results", self.limits.results, path=str(path))
        self._end("finished", exit_code=0, summary={"state": "done"})
        shutil.rmtree(staging)

    def _close(self, failed: str | None) -> None:
        if failed is None:
            self.limits = self.limits.interrupted()
        self._wait_until_open()
        self._log_point()
        self._session.wait(self.limits.results, "log")
        summary = {"state": "interrupted"} if failed is None else {"state": "failed", "error": failed}
        self._end("closed", exit_code=1, summary=summary)

    def _wait_until_open(self) -> None:
        if not self._settled(self.limits.open):
            raise SessionError(f"W&B has not answered within {self.limits.open:g} s")

    def _end(self, state: str, exit_code: int, summary: dict[str, Any]) -> None:
        try:
            self._session.call("close", self.limits.close, exit_code=exit_code, summary=summary)
        except SessionError as error:
            raise SessionError(f"{error}; what was logged is in {self._study / self.state.folder}") from error
        self._session.end(timeout=30)
        self.state = replace(self.state, state=state)
        self._keep()

    def _earlier(self) -> TrackingState:
        path = self.folder / STATE_FILE
        if not path.is_file():
            return self.state
        earlier = TrackingState(**json.loads(path.read_text(encoding="utf-8")))
        # Another id, another run: a sweep's, or a cell's folder was reused by hand.
        return earlier if earlier.run_id == self.state.run_id else self.state

    def _keep(self) -> None:
        write_text_atomically(self.folder / STATE_FILE, json.dumps(asdict(self.state), indent=2) + "\n")


def _tags(cell: Mapping[str, Any]) -> list[str]:
    # W&B takes tags of 64 characters at most.
    words = [cell["method"], str(cell["model"]), *cell["tasks"]]
    return list(dict.fromkeys(word[:64] for word in words if word))


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
