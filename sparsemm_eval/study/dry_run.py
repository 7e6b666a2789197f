"""What a study would do: its cells, their commands, and how long and how much."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from rich.console import Console

from sparsemm_eval.study import estimate, overview, progress
from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.folder import StudyFolder


def show(folder: StudyFolder, cells: Sequence[Cell], workers: int, nproc: int, as_json: bool) -> None:
    """Print the plan; nothing is written."""
    left = estimate.of(folder, cells, workers)
    found = overview.views(folder, cells, estimate.expected_documents(folder, cells))
    commands = [_command_text(folder, cell, nproc) for cell in cells]
    if as_json:
        listed = [
            {**cell.record(folder.cell(cell.id).root), "state": one.state, "command": command}
            for cell, one, command in zip(cells, found, commands, strict=True)
        ]
        print(
            json.dumps(
                {"folder": str(folder.root), "workers": workers, "estimate": left.record(), "cells": listed},
                indent=2,
            )
        )
        return
    Console().print(progress.table(found))
    for command in commands:
        print(f"$ {command}")
    print(f"\n{len(cells)} cells: {progress.counts(found)}; folder {folder.root}")
    print(f"time: {estimate.text_of_seconds(left.seconds)} ({left.why})")
    print(f"disk: {estimate.text_of_bytes(left.bytes)} ({left.bytes_why})")


def _command_text(folder: StudyFolder, cell: Cell, nproc: int) -> str:
    reference = folder.cell(cell.reference).journal if cell.reference else None
    arguments = cell.arguments(folder.cell(cell.id).root, reference)
    return shlex.join(["sparsemm", "eval", "--nproc", str(nproc), *arguments])
