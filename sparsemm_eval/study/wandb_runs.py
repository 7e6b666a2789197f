"""Whether and how a study's cells are logged to W&B: by a process of its own, when a cell has ended.

Nothing here can cost a cell its results: what goes wrong is told in one line, and kept in the cell's status.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.lmms.tied import tied

MODES = ("disabled", "offline", "online")
PROGRAM = [sys.executable, "-m", "sparsemm_eval.tracking"]
#: Seconds for a run to be written; online with everything uploaded.
LIMITS = {"offline": 180.0, "online": 900.0}
_SECRETS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY")


def to_stderr(message: str) -> None:
    """Tell a person."""
    print(message, file=sys.stderr, flush=True)


def has_credentials() -> bool:
    """Whether W&B finds a key in its environment or the user's netrc; nothing is asked."""
    surroundings = {**os.environ, "WANDB_SILENT": "true"}
    found = subprocess.run(
        [*PROGRAM, "check"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,
        timeout=120,
        env=surroundings,
        check=False,
    )
    return found.returncode == 0


def without_secrets(text: str) -> str:
    """A message with every secret of the environment blanked out."""
    for name in _SECRETS:
        if os.environ.get(name):
            text = text.replace(os.environ[name], f"[{name}]")
    return text


@dataclass(frozen=True)
class Tracking:
    """Where runs of cells are logged to.

    Attributes
    ----------
    mode : str
        ``disabled``, ``offline`` (files below the study's folder, for `wandb sync`) or ``online``.
    warn : callable
        Takes messages of what did not work.
    limit : float or None
        Seconds for a run to be written; None: as ``LIMITS`` says.
    """

    mode: str = "disabled"
    warn: Callable[[str], None] = to_stderr
    limit: float | None = None

    def check(self) -> None:
        """Refuse, before anything starts, what cannot work.

        Raises
        ------
        ConfigError
            For online runs without credentials.
        """
        if self.mode == "online" and not has_credentials():
            raise ConfigError(
                "wandb.mode",
                "online",
                "W&B credentials: run `wandb login` or set WANDB_API_KEY (never in the study's file), or use "
                "mode: offline and `wandb sync` later",
            )

    def log_cell(self, root: Path, identifier: str) -> str | None:
        """Write the run of a cell; ``logged``, what went wrong, or None where nothing is logged."""
        return self._log(root, f"cell {identifier}", ["cell", str(root), identifier])

    def log_study(self, root: Path) -> str | None:
        """Write the run that compares the study's cells; returns as ``log_cell``."""
        return self._log(root, "the study", ["study", str(root)])

    def _log(self, root: Path, what: str, arguments: list[str]) -> str | None:
        if self.mode == "disabled":
            return None
        limit = LIMITS[self.mode] if self.limit is None else self.limit
        # W&B's own files below the study, and no service of another process.
        own = {f"WANDB_{kind.upper()}_DIR": str(root / "wandb" / kind) for kind in ("data", "cache")}
        outer = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
        try:
            done = subprocess.run(
                tied([*PROGRAM, *arguments]),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                env={**outer, **own},
                start_new_session=True,  # an interrupt of the study lets it end
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            problem = f"W&B took more than {limit:g} s"
        else:
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            problem = (said or [f"exit status {done.returncode}"])[-1] if done.returncode else None
        if problem is None:
            return "logged"
        problem = without_secrets(problem)
        self.warn(f"W&B: {what} was not logged: {problem} (its results are as they are)")
        return problem
