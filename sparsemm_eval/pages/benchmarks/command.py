"""`sparsemm pages benchmarks`: write the stand-in benchmarks and say how to run them."""

from pathlib import Path
from typing import Annotated

import typer

from sparsemm_eval.pages.benchmarks import write as benchmarks


def command(
    directory: Annotated[Path, typer.Argument(help="Where to write, and to run lmms-eval in.")],
    count: Annotated[int, typer.Option(min=1, help="Documents per benchmark.")] = benchmarks.DEFAULT_COUNT,
    seed: Annotated[int, typer.Option(min=0, help="Other seeds, other pages.")] = benchmarks.DEFAULT_SEED,
) -> None:
    """Render small stand-ins for the seven benchmarks; upstream's own tasks then run without a hub."""
    for folder in benchmarks.write(directory, count, seed):
        print(folder)
    print(f"\nTo evaluate a reader on them:\n  {benchmarks.command_line(directory)}")
    print(
        "textcaps_val needs java. ocrbench divides its points by 1000 whatever the number of documents: with "
        f"{count} of them the best score is {count / 1000:g}."
    )
