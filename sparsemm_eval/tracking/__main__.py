"""One W&B run of a study, written in a process of its own: W&B may hang, and leaves threads and exit hooks.

``python -m sparsemm_eval.tracking cell STUDY ID``, ``… study STUDY``, or ``… check`` for credentials.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sparsemm_eval import compat


def main(subject: str, *arguments: str) -> int:
    """Write the run, or say with the exit code whether there are credentials."""
    if subject == "check":
        return 0 if compat.has_wandb_credentials() else 1
    from sparsemm_eval.tracking import runs

    if subject == "cell":
        runs.log_cell(Path(arguments[0]), arguments[1])
    else:
        runs.log_study(Path(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
