"""Whether and how a study's cells are logged to W&B: by a process of its own, when a cell has ended.

Nothing here can cost a cell its results: what goes wrong is told in one line, and kept in the cell's status.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.lmms.tied import tied

MODES = ("disabled", "offline", "online")
#: Seconds for a run to be written; online with everything uploaded.
LIMITS = {"offline": 180.0, "online": 900.0}
_SECRETS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY")


def _ask(*arguments: str, limit: float, **surroundings: str) -> subprocess.CompletedProcess[str]:
    """Have W&B do something in a process of its own, which no service of another process takes part in."""
    outer = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return subprocess.run(
        tied([sys.executable, "-m", "sparsemm_eval.tracking", *arguments]),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env={**outer, **surroundings},
        start_new_session=True,  # an interrupt of the study lets it end
        timeout=limit,
        check=False,
    )


def has_credentials() -> bool:
    """Whether W&B finds a key in its environment or the user's netrc; nothing is asked."""
    return _ask("check", limit=120, WANDB_SILENT="true").returncode == 0


def without_secrets(text: str) -> str:
    """A message with every secret of the environment blanked out."""
    for name in _SECRETS:
        if os.environ.get(name):
            text = text.replace(os.environ[name], f"[{name}]")
    return text


def check(mode: str) -> None:
    """Refuse, before anything starts, what cannot work.

    Raises
    ------
    ConfigError
        For online runs without credentials.
    """
    if mode == "online" and not has_credentials():
        raise ConfigError(
            "wandb.mode",
            "online",
            "W&B credentials: run `wandb login` or set WANDB_API_KEY (never in the study's file), or use "
            "mode: offline and `wandb sync` later",
        )


def log(mode: str, root: Path, cell: str | None = None) -> str | None:
    """Write the run of a cell by its id, or the run that compares the cells of the study in ``root``.

    The mode is ``disabled``, ``offline`` (files below the study's folder, for `wandb sync`) or ``online``.
    Returns ``logged``, what went wrong, or None where nothing is logged.
    """
    if mode == "disabled":
        return None
    # W&B's own files below the study
    own = {f"WANDB_{kind.upper()}_DIR": str(root / "wandb" / kind) for kind in ("data", "cache")}
    arguments = ["study", str(root)] if cell is None else ["cell", str(root), cell]
    try:
        done = _ask(*arguments, limit=LIMITS[mode], **own)
    except subprocess.TimeoutExpired:
        problem = f"W&B took more than {LIMITS[mode]:g} s"
    else:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        problem = (said or [f"exit status {done.returncode}"])[-1] if done.returncode else None
    if problem is None:
        return "logged"
    problem = without_secrets(problem)
    what = "the study" if cell is None else f"cell {cell}"
    told = f"W&B: {what} was not logged: {problem} (its results are as they are)"
    print(told, file=sys.stderr, flush=True)
    return problem
