"""A study as a SLURM array: one array task for every cell."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.folder import StudyFolder
from sparsemm_eval.study.one_cell import PATIENCE
from sparsemm_eval.study.settings import Study


@dataclass(frozen=True)
class SlurmOptions:
    """What the cluster is asked for; None leaves it to its defaults.

    Attributes
    ----------
    partition, account, time : str or None
    gpus_per_task : str or None
        A count, or a type and a count.
    cpus_per_task : int or None
    memory : str or None
    parallel : int or None
        Cells at a time.
    """

    partition: str | None = None
    account: str | None = None
    time: str | None = None
    gpus_per_task: str | None = None
    cpus_per_task: int | None = None
    memory: str | None = None
    parallel: int | None = None


def text(study: Study, folder: StudyFolder, cells: Sequence[Cell], options: SlurmOptions) -> str:
    """The batch file.

    FullKV cells come first in the array. A cell whose FullKV run is under way waits for it, and a few
    minutes for it to begin; then it runs without agreement. A cancelled or requeued task goes on from its
    journal.
    """
    limit = "" if options.parallel is None else f"%{options.parallel}"
    settings = {
        "job-name": study.name,
        "array": f"0-{len(cells) - 1}{limit}",
        # %A and %a are the array's and the task's numbers.
        "output": f"{folder.root}/slurm/%A_%a.txt",
        "ntasks": 1,
        "partition": options.partition,
        "account": options.account,
        "time": options.time,
        "gpus-per-task": options.gpus_per_task,
        "cpus-per-task": options.cpus_per_task,
        "mem": options.memory,
        # A minute before the time is over; B: to the batch shell, whose place the cell takes.
        "signal": "B:TERM@60",
        "requeue": True,
    }
    lines = [_line(name, value) for name, value in settings.items() if value is not None]
    command = shlex.join(
        [sys.executable, "-m", "sparsemm_eval", "study", "cell", str(folder.root), f"--patience={PATIENCE}"]
    )
    return "\n".join(
        [
            "#!/bin/bash",
            f"# The study {study.name!r}: {len(cells)} cells, FullKV first. Start it with: sbatch THIS_FILE",
            *lines,
            "set -eu",
            f'exec {command} "$SLURM_ARRAY_TASK_ID"',
            "",
        ]
    )


def _line(name: str, value: object) -> str:
    if value is True:
        return f"#SBATCH --{name}"
    quoted = f'"{value}"' if " " in str(value) else value
    return f"#SBATCH --{name}={quoted}"
