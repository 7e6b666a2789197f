"""A study's cells for engines that run on many machines: SLURM arrays and W&B sweeps."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.folder import StudyFolder

if TYPE_CHECKING:
    from sparsemm_eval.study.study_file import Study


def slurm_array(
    study: Study,
    folder: StudyFolder,
    cells: Sequence[Cell],
    options: Mapping[str, Any],
    more: Sequence[str] = (),
    cells_per_task: int = 1,
    parallel: int | None = None,
    max_array: int | None = None,
) -> str:
    """A batch file with an array over the cells, FullKV first; a cancelled or requeued task goes on.

    ``options`` are sbatch's by name, those that are None left to the cluster; ``more`` are further ones as
    sbatch takes them: ``--reservation=x``. ``cells_per_task`` run one after another, ``parallel`` tasks at a
    time, and ``max_array`` is the cluster's MaxArraySize.

    Raises
    ------
    ConfigError
        If the array is larger than that, or an option is none.
    """
    tasks = -(-len(cells) // cells_per_task)
    if max_array is not None and tasks > max_array:
        fitting = -(-len(cells) // max_array)
        remedy = f"at least {fitting}: {len(cells)} cells in an array of at most {max_array} tasks"
        raise ConfigError("--cells-per-task", cells_per_task, remedy)
    for option in more:
        if not option.startswith("-") or "\n" in option:
            raise ConfigError("--sbatch", option, "an option of sbatch, for instance --reservation=name")
    for name, value in options.items():
        if "\n" in str(value):
            raise ConfigError(f"--{name}", value, "one line")
    settings = {
        "job-name": study.name,
        "array": f"0-{tasks - 1}" + ("" if parallel is None else f"%{parallel}"),
        # %A and %a are the array's and the task's numbers.
        "output": f"{folder.root}/slurm/%A_%a.txt",
        "ntasks": 1,
        **options,
        # A minute before the time is over; B: to the batch shell, whose place the cell takes.
        "signal": "B:TERM@60",
    }
    given = [f"--{name}={_quoted(value)}" for name, value in settings.items() if value is not None]
    command = [sys.executable, "-m", "sparsemm_eval", "study", "cell", str(folder.root)]
    command += [] if cells_per_task == 1 else [f"--count={cells_per_task}"]
    return "\n".join(
        [
            "#!/bin/bash",
            f"# The study {study.name!r}: {len(cells)} cells, FullKV first. Start it with: sbatch THIS_FILE",
            *(f"#SBATCH {option}" for option in [*given, "--requeue", *more]),
            "set -eu",
            f'exec {shlex.join(command)} "$((SLURM_ARRAY_TASK_ID * {cells_per_task}))"',
            "",
        ]
    )


def _quoted(value: object) -> str:
    return f'"{value}"' if " " in str(value) else str(value)


def sweep(study: Study, folder: StudyFolder, cells: Sequence[Cell]) -> str:
    """A W&B sweep over the cells' ids: agents on any machines pull them one by one."""
    place = {"project": study.wandb.project}
    if study.wandb.entity is not None:
        place["entity"] = study.wandb.entity
    options = " ".join(f"--{name} {value}" for name, value in place.items())
    configuration = {
        "name": study.name,
        **place,
        "method": "grid",
        "program": "sparsemm",
        "command": [
            *("${env}", sys.executable, "-m", "sparsemm_eval", "study", "cell", str(folder.root)),
            "${args}",
        ],
        "parameters": {"cell": {"values": [cell.id for cell in cells]}},
    }
    head = f"""\
# The study {study.name!r} as a W&B sweep: {len(cells)} cells, FullKV first.
#
#   wandb sweep {options} THIS_FILE     # once; prints the name of the sweep
#   wandb agent ENTITY/PROJECT/SWEEP           # on every machine, as often as cells shall run side by side
#   CUDA_VISIBLE_DEVICES=0 wandb agent …       # one agent for each GPU
#
# The machines share the folder {folder.root}
# and start agents from one and the same working directory. A cell that is done is not run again.
"""
    return head + yaml.safe_dump(configuration, sort_keys=False, width=1000)
