"""A study as a W&B sweep: agents on any machines that see its folder pull its cells one by one."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import yaml

from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.folder import StudyFolder
from sparsemm_eval.study.one_cell import PATIENCE
from sparsemm_eval.study.settings import Study

_HEAD = """\
# The study {name!r} as a W&B sweep: {count} cells, FullKV first.
#
#   wandb sweep {project}{entity}THIS_FILE     # once; prints the name of the sweep
#   wandb agent ENTITY/PROJECT/SWEEP           # on every machine, as often as cells shall run side by side
#   CUDA_VISIBLE_DEVICES=0 wandb agent …       # one agent for each GPU
#
# The machines share the folder {folder}
# and start agents from one and the same working directory. A cell that is done is not run again.
"""


def text(study: Study, folder: StudyFolder, cells: Sequence[Cell]) -> str:
    """The sweep's configuration: a grid over the cells' ids."""
    configuration = {
        "name": study.name,
        "project": study.wandb.project,
        **({} if study.wandb.entity is None else {"entity": study.wandb.entity}),
        "method": "grid",
        "program": "sparsemm",
        "command": [
            "${env}",
            sys.executable,
            "-m",
            "sparsemm_eval",
            "study",
            "cell",
            str(folder.root),
            f"--patience={PATIENCE}",
            "${args}",
        ],
        "parameters": {"cell": {"values": [cell.id for cell in cells]}},
    }
    head = _HEAD.format(
        name=study.name,
        count=len(cells),
        project=f"--project {study.wandb.project} ",
        entity="" if study.wandb.entity is None else f"--entity {study.wandb.entity} ",
        folder=folder.root,
    )
    return head + yaml.safe_dump(configuration, sort_keys=False, width=1000)
