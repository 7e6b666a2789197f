"""`sparsemm study …`: run a study, see where it stands, hand its cells to clusters."""

from __future__ import annotations

import fnmatch
import json
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.study import cluster_commands, opening
from sparsemm_eval.study.figures import figures_command
from sparsemm_eval.study.show import show_command
from sparsemm_eval.study.signals import ended_by_signals

_File = Annotated[Path, typer.Argument(metavar="STUDY.YAML", help="The study's file, or a name from `list`.")]
_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The study's folder (its output).")]
_Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, for scripts; messages go to standard error.")
]
_Nproc = Annotated[
    int | None, typer.Option(min=1, help="Processes per cell, data parallel; the study's by default.")
]

app = typer.Typer(
    help="Studies: a grid of evaluations in one file, resumable, on one GPU or many machines.",
    epilog="Begin with: sparsemm study run study.yaml --dry-run",
    no_args_is_help=True,
)
app.command("show")(show_command)
app.command("figures")(figures_command)
app.command("sweep", epilog=cluster_commands.SWEEP_EXAMPLE)(cluster_commands.sweep_command)
app.command("slurm", epilog=cluster_commands.SLURM_EXAMPLE)(cluster_commands.slurm_command)


@app.command(
    "run",
    epilog="Examples: sparsemm study run study.yaml --dry-run; sparsemm study run study.yaml --gpus 0,1,2,3; "
    "sparsemm study run study.yaml --only '*-b32-*'. Exit codes: 0 every cell is done, 1 a cell failed, "
    "2 the study cannot be run, 130 or 143 interrupted.",
)
def run(
    file: _File,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, show cells, commands and estimates; run none."),
    ] = False,
    gpus: Annotated[
        str | None,
        typer.Option(help="GPUs, for instance 0,1,2,3: one cell on each (on each group of --nproc)."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Cells side by side on the CPU.")] = None,
    nproc: _Nproc = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Only cells with such an id, for instance '*-b32-*'; repeatable."
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try cells again whose retries are used up.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Run a study, or go on with it.

    Cells that are done are skipped; killed and failed ones go on from their journals. Several runs of the
    same study on the same folder, on one or many machines, share its cells; a cell whose runner was lost
    with its machine is taken over after two minutes. Every cell's output is in its log.txt.
    """
    from sparsemm_eval.study import dry_run as plan_display
    from sparsemm_eval.study.folder import StudyFolder
    from sparsemm_eval.study.runner import Runner
    from sparsemm_eval.study.workers import Workers

    study, cells = opening.load(file)
    folder = StudyFolder(study.output)
    chosen = _chosen(cells, only)
    processes = nproc or study.nproc
    if gpus is not None and workers is not None:
        raise ConfigError(
            "--workers", workers, "no value beside --gpus, which says how many run side by side"
        )
    places = Workers.on_cpu(workers or 1)
    if gpus is not None:
        places = Workers.on_gpus([gpu.strip() for gpu in gpus.split(",")], processes)
    folder.refuse_other(study, cells)
    if dry_run:
        plan_display.show(folder, chosen, len(places.environments), processes, as_json)
        return
    how = _how(study.retries, processes, study.wandb.mode)
    how.tracking.check()
    folder.prepare(study, cells)
    count = len(places.environments)
    from sparsemm_eval.study import progress, results

    with progress.watcher(folder, chosen, count, to_stderr=as_json) as watcher:
        runner = Runner(folder, chosen, how, places, watcher, retry_failed, collect=results.write)
        with ended_by_signals(runner.stop) as received:
            outcome = runner.run()
    if not received:
        how.tracking.log_study(folder.root)
    _report(folder, outcome, as_json)
    if received:
        raise typer.Exit(128 + received[0])
    if not outcome.complete:
        raise typer.Exit(1)


@app.command("list")
def list_shipped() -> None:
    """Show the studies that come with the package; they run by name."""
    from sparsemm_eval.studies import FOLDER

    for path in sorted(FOLDER.glob("*.yaml")):
        print(f"{path.stem:12} {path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")
    print(f"\nFor instance: sparsemm study run tiny --dry-run; the files are in {FOLDER}")


@app.command(
    "status",
    epilog="Examples: sparsemm study status runs/tiny; sparsemm study status runs/tiny --json.",
)
def status(folder: _Folder, as_json: _Json = False) -> None:
    """Show where every cell of a study stands; the study may be running, here or elsewhere."""
    from rich.console import Console

    from sparsemm_eval.study import estimate, overview, progress
    from sparsemm_eval.study.folder import StudyFolder

    place = StudyFolder(folder)
    cells = place.cells()
    found = overview.views(place, cells, estimate.expected_documents(place, cells))
    left = estimate.of(place, cells)
    if as_json:
        counts = {state: sum(one.state == state for one in found) for state in overview.STATES}
        record = {
            "study": place.settings()["name"],
            "folder": str(place.root),
            "counts": counts,
            "left": left.record(),
            "cells": [one.record() for one in found],
        }
        print(json.dumps(record, indent=2))
        return
    Console().print(progress.table(found))
    print(f"{progress.counts(found)}; left, one after another: {estimate.text_of_seconds(left.seconds)}")
    for one in found:
        if one.state == "failed":
            print(f"{one.id}: {one.error}")
        elif one.agreement not in (None, "yes"):
            print(f"{one.id}: without agreement, {one.agreement}")


@app.command(
    "cell",
    epilog="Examples: sparsemm study cell runs/tiny 0; sparsemm study cell runs/tiny --cell ID. Exit codes: "
    "0 it is done, 1 it failed, 2 there is no such cell or somebody else runs it, 143 interrupted.",
)
def cell(
    folder: _Folder,
    which: Annotated[
        str | None, typer.Argument(metavar="INDEX|ID", help="Its position, from 0, or its id.")
    ] = None,
    identifier: Annotated[
        str | None, typer.Option("--cell", metavar="INDEX|ID", help="The same, as sweeps give it.")
    ] = None,
    nproc: _Nproc = None,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds in which somebody may still begin with its FullKV cell.")
    ] = 0,
    as_json: _Json = False,
) -> None:
    """Run exactly one cell of a study; what SLURM arrays and W&B sweeps call.

    Does nothing if it is done; goes on from the journal if it was begun. Waits for its FullKV cell if that
    is running, and runs without agreement if nobody has run that.
    """
    from sparsemm_eval.study import progress, results
    from sparsemm_eval.study.cell_run import Interrupted
    from sparsemm_eval.study.folder import StudyFolder
    from sparsemm_eval.study.one_cell import run_one
    from sparsemm_eval.study.table_files import write_tables

    place = StudyFolder(folder)
    settings = place.settings()["settings"]
    chosen = _one(place.cells(), which if which is not None else identifier)
    how = _how(settings["retries"], nproc or settings["nproc"], settings["wandb"]["mode"])
    how.tracking.check()
    with progress.watcher(place, [chosen], 1, to_stderr=as_json) as watcher:
        watcher.started(chosen)
        stop = threading.Event()
        with ended_by_signals(stop) as received:
            try:
                ended = run_one(place, chosen, how, stop, patience=patience)
            except Interrupted as error:
                raise typer.Exit(128 + (received or [signal.SIGTERM])[0]) from error
        watcher.ended(chosen, ended)
    problem = write_tables(place, results.write)
    if as_json:
        print(json.dumps({"cell": chosen.id, **ended}, indent=2))
    if problem:
        typer.echo(problem, err=True)
    if problem or ended["state"] != "done":
        raise typer.Exit(1)


def _how(retries: int, nproc: int, mode: str) -> Any:
    from sparsemm_eval.study.cell_run import How
    from sparsemm_eval.study.wandb_runs import Tracking

    return How(retries=retries, nproc=nproc, tracking=Tracking(mode))


def _chosen(cells: Sequence[Any], patterns: Sequence[str] | None) -> list[Any]:
    if not patterns:
        return list(cells)
    chosen = [cell for cell in cells if any(fnmatch.fnmatchcase(cell.id, pattern) for pattern in patterns)]
    if not chosen:
        raise ConfigError(
            "--only", ", ".join(patterns), f"a pattern that a cell's id matches, for instance {cells[0].id!r}"
        )
    return chosen


def _one(cells: Sequence[Any], which: str | None) -> Any:
    for index, cell in enumerate(cells):
        if which in (str(index), cell.id):
            return cell
    raise ConfigError("cell", which, f"a number from 0 to {len(cells) - 1}, or a cell's id")


def _report(folder: Any, outcome: Any, as_json: bool) -> None:
    if as_json:
        record = {
            "folder": str(folder.root),
            "states": outcome.states,
            "errors": outcome.errors,
            "problems": list(outcome.problems),
            "interrupted": outcome.interrupted,
        }
        print(json.dumps(record, indent=2))
        return
    for identifier, state in outcome.states.items():
        if state == "failed":
            print(f"{identifier}: {outcome.errors.get(identifier)}")
            print(f"  log: {folder.cell(identifier).log}")
    done = sum(state == "done" for state in outcome.states.values())
    again = "" if done == len(outcome.states) else "; run the same command to go on"
    if any(state == "failed" for state in outcome.states.values()):
        again += ", with --retry-failed for those that failed"
    print(f"{done} of {len(outcome.states)} cells are done in {folder.root}{again}")
