"""`sparsemm tasks`: the tasks of this package and the folder that lmms-eval finds them in."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsemm_eval.lmms import task_needs
from sparsemm_eval.tasks import FOLDER

_TASKS = {
    "pages_qa": "value of a key on a held-out page: exact match",
    "pages_ocr": "transcription of a held-out page: character accuracy",
}


def command(
    path: Annotated[bool, typer.Option("--path", help="Print the folder alone, for --include_path.")] = False,
) -> None:
    """List the tasks that come with this package."""
    if path:
        print(FOLDER)
        return
    for name, meaning in _TASKS.items():
        print(f"{name:15} {meaning}")
    print(f"{task_needs.SUITE:15} upstream's {', '.join(task_needs.suite_members())}")
    print('\nsparsemm eval finds them by itself; lmms-eval with --include_path "$(sparsemm tasks --path)"')
