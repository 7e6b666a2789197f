"""`sparsemm study …`: run a study, see where it stands, show its results, hand its cells to clusters."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsemm_eval.errors import ConfigError, EvaluationError
from sparsemm_eval.files import users_path, write_text_atomically
from sparsemm_eval.studies import FOLDER


def _optional(kind: type, help: str, *names: str, **settings: Any) -> Any:
    """The type of an option that may be left out."""
    return Annotated[kind | None, typer.Option(*names, help=help, **settings)]


_File = Annotated[
    Path,
    typer.Argument(metavar="STUDY.YAML", help="The study's file, or a name from `list`.", parser=users_path),
]
Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The study's folder (its output).", parser=users_path)
]
Folders = Annotated[
    list[Path],
    typer.Argument(metavar="DIR…", help="Study folders; several are put together.", parser=users_path),
]
_Out = Annotated[Path, typer.Option(help="File to write.", parser=users_path)]
_Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, for scripts; messages go to standard error.")
]
_Nproc = _optional(int, "Processes per cell, data parallel; the study's by default.", min=1)

app = typer.Typer(
    help="Studies: a grid of evaluations in one file, resumable, on one GPU or many machines.",
    epilog="Begin with: sparsemm study run study.yaml --dry-run",
    no_args_is_help=True,
)


@app.command(
    "run",
    epilog="Examples: sparsemm study run study.yaml --dry-run; sparsemm study run study.yaml --gpus 0,1,2,3; "
    "sparsemm study run study.yaml --only '*-b32-*'. Exit codes: 0 every cell is done, 1 a cell failed or "
    "the tables could not be written, 2 the study cannot be run, 130 or 143 interrupted.",
)
def run(
    file: _File,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, show cells, commands and time; run none."),
    ] = False,
    gpus: _optional(str, "GPUs, for instance 0,1,2,3: one cell on each (on each group of --nproc).") = None,
    workers: _optional(int, "Cells side by side on the CPU.", min=1) = None,
    nproc: _Nproc = None,
    only: _optional(
        list[str], "Only cells with such an id, for instance '*-b32-*'; repeatable.", metavar="PATTERN"
    ) = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try cells again whose retries are used up.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Run a study, or go on with it.

    Cells that are done are skipped; killed and failed ones go on from their journals; stale ones, and those
    that are new in the file, are run. Several runs of the same study on the same folder, on one or many
    machines, share its cells. Every cell's output is in its log.txt.
    """
    from sparsemm_eval.study import cell_run, display, runner, wandb_runs
    from sparsemm_eval.study.folder import StudyFolder

    study, cells = _load(file)
    folder = StudyFolder(study.output)
    chosen = _chosen(cells, only)
    processes = nproc or study.nproc
    if gpus is not None and workers is not None:
        remedy = "no value beside --gpus, which says how many run side by side"
        raise ConfigError("--workers", workers, remedy)
    places = runner.on_cpu(workers or 1)
    if gpus is not None:
        places = runner.on_gpus([gpu.strip() for gpu in gpus.split(",")], processes)
    folder.refuse_other(study)
    if dry_run:
        display.print_plan(folder, chosen, len(places), processes, as_json)
        return
    how = cell_run.How(retries=study.retries, nproc=processes, wandb=study.wandb.mode)
    wandb_runs.check(how.wandb)
    folder.prepare(study, cells)
    outcome, received = _carry_out(folder, chosen, how, places, as_json, retry_failed=retry_failed)
    if not received:
        wandb_runs.log(how.wandb, folder.root)
    _report(folder, outcome, as_json)
    _end(outcome, received)


@app.command("list")
def list_shipped() -> None:
    """Show the studies that come with the package; they run by name."""
    for path in sorted(FOLDER.rglob("*.yaml")):
        name = path.relative_to(FOLDER).with_suffix("").as_posix()
        print(f"{name:18} {path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")
    print(f"\nFor instance: sparsemm study run tiny --dry-run; the files are in {FOLDER}")


@app.command(
    "status",
    epilog="Examples: sparsemm study status runs/tiny; sparsemm study status runs/tiny --json.",
)
def status(folder: Folder, as_json: _Json = False) -> None:
    """Show where every cell of a study stands; the study may be running, here or elsewhere."""
    from sparsemm_eval.study import display
    from sparsemm_eval.study.folder import StudyFolder

    place = StudyFolder(folder)
    found, others = display.views(place, place.cells()), place.others()
    left = display.seconds_left(found)
    if as_json:
        record = {
            "study": place.settings()["name"],
            "folder": str(place.root),
            "counts": display.numbers(found),
            "seconds_left": left,
            "cells": [dataclasses.asdict(one) for one in found],
            "not_in_the_file": others,
        }
        print(json.dumps(record, indent=2))
        return
    display.print_table(found)
    print(f"{display.counts(found)}; left, one after another: {display.text_of_seconds(left)}")
    if others:
        print(f"{len(others)} more cells lie in {place.root / 'cells'} that the study's file no more names")
    for one in found:
        if one.state in ("failed", "stale"):
            print(f"{one.id}: {one.error}")


@app.command(
    "cell",
    epilog="Examples: sparsemm study cell runs/tiny 0; sparsemm study cell runs/tiny --cell ID. Exit codes: "
    "0 it is done, 1 it failed or somebody else runs it, 2 there is no such cell, 143 interrupted.",
)
def cell(
    folder: Folder,
    which: Annotated[
        str | None, typer.Argument(metavar="INDEX|ID", help="Its position, from 0, or its id.")
    ] = None,
    identifier: _optional(str, "The same, as sweeps give it.", "--cell", metavar="INDEX|ID") = None,
    count: Annotated[int, typer.Option(min=1, help="This and the following ones, so many in all.")] = 1,
    nproc: _Nproc = None,
    as_json: _Json = False,
) -> None:
    """Run exactly one cell of a study, or a few; what SLURM arrays and W&B sweeps call.

    Does nothing if it is done; goes on from the journal if it was begun; tries again if it failed.
    """
    from sparsemm_eval.study import cell_run, wandb_runs
    from sparsemm_eval.study.folder import StudyFolder

    place = StudyFolder(folder)
    settings = place.settings()["settings"]
    chosen = _some(place.cells(), which if which is not None else identifier, count)
    processes, mode = nproc or settings["nproc"], settings["wandb"]["mode"]
    how = cell_run.How(retries=settings["retries"], nproc=processes, wandb=mode)
    wandb_runs.check(how.wandb)
    outcome, received = _carry_out(place, chosen, how, [{}], as_json, retry_failed=True, wait=False)
    if as_json:
        print(json.dumps([{"cell": one.id, **place.cell(one.id).status()} for one in chosen], indent=2))
    for one in chosen if not received else ():
        if outcome.states[one.id] == "pending":
            raise EvaluationError(
                f"{one.id} is being run by {place.cell(one.id).holder() or 'somebody else'}"
            )
    _end(outcome, received)


@app.command("show")
def show(
    folders: Folders,
    format: Annotated[str, typer.Option("--format", "-f", help="text, markdown, latex or json.")] = "text",
    table: Annotated[
        str, typer.Option("--table", "-t", help="headline, paired, main, ablation, rho, masking or all.")
    ] = "all",
    against: _optional(str, "Method that the paired table compares with the others.") = None,
) -> None:
    """Print a study's tables, published numbers beside ours where model and task are the paper's.

    Examples: `sparsemm study show runs/tiny`, `sparsemm study show runs/tiny --format latex -t headline`.
    """
    # pandas takes a second to import, and every command would pay for it.
    from sparsemm_eval.study.results import collect
    from sparsemm_eval.study.table_formats import write_tables
    from sparsemm_eval.study.tables import Study, of_kind

    tables = of_kind(Study.of(*collect(folders), against), table)
    if not tables:
        names = ", ".join(map(str, folders))
        raise EvaluationError(f"{names}: nothing for a {table} table yet (methods, knobs or finished cells)")
    typer.echo(write_tables(tables, format))


@app.command("figures")
def figures(
    folders: Folders,
    out: _optional(Path, "Folder to write to. Default: DIR/figures.", parser=users_path) = None,
    ending: Annotated[str, typer.Option("--format", "-f", help="png, svg or pdf.")] = "png",
) -> None:
    """Draw a study: score against effective budget, masking, knobs, times and heads, for each model.

    Example: `sparsemm study figures runs/tiny --format svg`.
    """
    from sparsemm_eval.heads.figures.plots import FORMATS, check_picture, save_figure
    from sparsemm_eval.study.cell_files import read_study
    from sparsemm_eval.study.pictures import pictures
    from sparsemm_eval.study.results import collect
    from sparsemm_eval.study.tables import Study

    if f".{ending}" not in FORMATS:
        raise ConfigError("--format", ending, f"one of {', '.join(FORMATS).replace('.', '')}")
    place = out or folders[0] / "figures"
    check_picture("format", place / f"figure.{ending}")
    files = [one for folder in folders for one in read_study(folder)]
    for picture in pictures(Study.of(*collect(folders)), files):
        path = place / f"{picture.name}.{ending}"
        save_figure(picture.figure, path)
        typer.echo(str(path))


@app.command(
    "sweep",
    epilog="Example: sparsemm study sweep study.yaml --out sweep.yaml; wandb sweep sweep.yaml; then on every "
    "machine: wandb agent ENTITY/PROJECT/SWEEP.",
)
def sweep(
    file: _File,
    out: _Out = Path("sweep.yaml"),
) -> None:
    """Write a study as a W&B sweep: any number of agents, on any machines, pull its cells.

    The machines must share the study's folder. Set wandb: {mode: online} in the study, so that every cell
    reports to the run that its agent opened.
    """
    from sparsemm_eval.study import clusters

    study, folder, cells = _prepared(file)
    if study.wandb.mode != "online":
        note = f"note: {file} has wandb: {{mode: {study.wandb.mode}}}: agents work, but their runs stay empty"
        typer.echo(note, err=True)
    write_text_atomically(out, clusters.sweep(study, folder, cells))
    print(f"{out}: {len(cells)} cells; next: wandb sweep {shlex.quote(str(out))}")


@app.command(
    "slurm",
    epilog="Example: sparsemm study slurm study.yaml --partition gpu --time 4:00:00 --gpus-per-task 1; then: "
    "sbatch study.sbatch.",
)
def slurm(
    file: _File,
    out: _Out = Path("study.sbatch"),
    partition: _optional(str, "Partition.") = None,
    account: _optional(str, "Account.") = None,
    qos: _optional(str, "Quality of service.") = None,
    constraint: _optional(str, "Features of nodes, for instance a100.") = None,
    time: _optional(str, "Time limit of an array task, for instance 4:00:00.") = None,
    gpus_per_task: _optional(str, "GPUs of one cell, for instance 1 or a100:2.") = None,
    gres: _optional(str, "Generic resources, for instance gpu:1.") = None,
    cpus_per_task: _optional(int, "CPU cores of one cell.", min=1) = None,
    memory: _optional(str, "Memory of one cell, for instance 64G.") = None,
    parallel: _optional(int, "Array tasks at a time.", min=1) = None,
    cells_per_task: Annotated[
        int, typer.Option(min=1, help="Cells that one array task runs one after another.")
    ] = 1,
    max_array: _optional(int, "The cluster's MaxArraySize.", min=1) = None,
    sbatch: _optional(
        list[str], "A further option, for instance --sbatch=--reservation=x.", metavar="OPTION"
    ) = None,
) -> None:
    """Write a study as a SLURM array, FullKV first.

    Submit it again to go on with what was killed or has failed; done cells end at once.
    """
    from sparsemm_eval.study import clusters

    study, folder, cells = _prepared(file)
    options = {
        **{"partition": partition, "account": account, "qos": qos, "constraint": constraint, "time": time},
        **{"gpus-per-task": gpus_per_task, "gres": gres, "cpus-per-task": cpus_per_task, "mem": memory},
    }
    text = clusters.slurm_array(
        study, folder, cells, options, sbatch or (), cells_per_task, parallel, max_array
    )
    (folder.root / "slurm").mkdir(exist_ok=True)
    write_text_atomically(out, text)
    print(f"{out}: {len(cells)} cells; next: sbatch {shlex.quote(str(out))}")


def _load(file: Path) -> tuple[Any, list[Any]]:
    """The study of a file, or of a name that comes with the package, and its cells."""
    # The wrappers' checks import torch.
    from sparsemm_eval.study import checks

    shipped = FOLDER / f"{file}.yaml"
    return checks.load(shipped if shipped.is_file() and not file.exists() else file)


def _prepared(file: Path) -> tuple[Any, Any, list[Any]]:
    from sparsemm_eval.study.folder import StudyFolder

    study, cells = _load(file)
    folder = StudyFolder(study.output)
    folder.prepare(study, cells)
    return study, folder, cells


def _chosen(cells: Sequence[Any], patterns: Sequence[str] | None) -> list[Any]:
    if not patterns:
        return list(cells)
    chosen = [cell for cell in cells if any(fnmatch.fnmatchcase(cell.id, pattern) for pattern in patterns)]
    if not chosen:
        raise ConfigError(
            "--only", ", ".join(patterns), f"a pattern that a cell's id matches, for instance {cells[0].id!r}"
        )
    return chosen


def _some(cells: Sequence[Any], which: str | None, count: int) -> list[Any]:
    for index, cell in enumerate(cells):
        if which in (str(index), cell.id):
            return list(cells[index : index + count])
    raise ConfigError("cell", which, f"a number from 0 to {len(cells) - 1}, or a cell's id")


def _carry_out(
    folder: Any, cells: Sequence[Any], how: Any, places: Sequence[Any], as_json: bool, **changes: bool
) -> tuple[Any, list[int]]:
    """Run cells; returns what came of it, and the signals that ended it."""
    from sparsemm_eval.study import display, results, runner

    with display.Watcher(folder, cells, len(places), display.Console(stderr=as_json)) as watcher:
        working = runner.Runner(folder, cells, how, places, watcher, collect=results.write, **changes)
        with _ended_by_signals(working.stop) as received:
            outcome = working.run()
    for problem in outcome.problems:
        typer.echo(problem, err=True)
    return outcome, received


def _end(outcome: Any, received: Sequence[int]) -> None:
    if received:
        raise typer.Exit(128 + received[0])
    if not outcome.complete:
        raise typer.Exit(1)


@contextlib.contextmanager
def _ended_by_signals(stop: threading.Event) -> Iterator[list[int]]:
    """While inside, the first SIGINT, SIGTERM or SIGHUP sets `stop`; a second one ends this process."""
    received: list[int] = []
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        stop.set()
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)

    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield received
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def _report(folder: Any, outcome: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"folder": str(folder.root), **dataclasses.asdict(outcome)}, indent=2))
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
