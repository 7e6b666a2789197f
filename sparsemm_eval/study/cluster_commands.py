"""`sparsemm study sweep` and `slurm`: a study's cells for engines that run on many machines."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from sparsemm_eval.files import write_text_atomically
from sparsemm_eval.study import opening

_File = Annotated[Path, typer.Argument(metavar="STUDY.YAML", help="The study's file.")]

SWEEP_EXAMPLE = (
    "Example: sparsemm study sweep study.yaml --out sweep.yaml; wandb sweep sweep.yaml; then on every "
    "machine: wandb agent ENTITY/PROJECT/SWEEP."
)


def sweep_command(
    file: _File,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("sweep.yaml"),
) -> None:
    """Write a study as a W&B sweep: any number of agents, on any machines, pull its cells.

    The machines must share the study's folder. Set wandb: {mode: online} in the study, so that every cell
    reports to the run that its agent opened.
    """
    from sparsemm_eval.study import sweep as writer

    study, folder, cells = opening.load_and_prepare(file)
    if study.wandb.mode != "online":
        typer.echo(
            f"note: {file} has wandb: {{mode: {study.wandb.mode}}}: agents work, but their runs stay empty",
            err=True,
        )
    write_text_atomically(out, writer.text(study, folder, cells))
    print(f"{out}: {len(cells)} cells; next: wandb sweep {shlex.quote(str(out))}")


SLURM_EXAMPLE = (
    "Example: sparsemm study slurm study.yaml --partition gpu --time 4:00:00 --gpus-per-task 1; then: "
    "sbatch study.sbatch."
)


def slurm_command(
    file: _File,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("study.sbatch"),
    partition: Annotated[str | None, typer.Option(help="Partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Account.")] = None,
    time: Annotated[str | None, typer.Option(help="Time limit of one cell, for instance 4:00:00.")] = None,
    gpus_per_task: Annotated[
        str | None, typer.Option(help="GPUs of one cell, for instance 1 or a100:2.")
    ] = None,
    cpus_per_task: Annotated[int | None, typer.Option(min=1, help="CPU cores of one cell.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of one cell, for instance 64G.")] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="Cells at a time; SLURM decides by default.")
    ] = None,
) -> None:
    """Write a study as a SLURM array: one array task for every cell, FullKV first.

    Submit it again to go on with what was killed or has failed; done cells end at once.
    """
    from sparsemm_eval.study import slurm as writer

    study, folder, cells = opening.load_and_prepare(file)
    options = writer.SlurmOptions(partition, account, time, gpus_per_task, cpus_per_task, memory, parallel)
    (folder.root / "slurm").mkdir(exist_ok=True)
    write_text_atomically(out, writer.text(study, folder, cells, options))
    print(f"{out}: {len(cells)} cells; next: sbatch {shlex.quote(str(out))}")
