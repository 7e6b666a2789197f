"""`sparsemm demo`: three methods on the shipped reader through the real lmms-eval command, in one table."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from sparsemm_eval.errors import EvaluationError, SparseMMError
from sparsemm_eval.lmms.evaluate import evaluate
from sparsemm_eval.lmms.results import ResultsFile

READER = "tiny-reader"
# Prompts of pages are short: a question is about as long as this observation window.
WINDOW = 8
TASKS = {"pages_qa": "exact_match", "pages_ocr": "character_accuracy"}
_UNCOMPRESSED = "llava_fullkv"
MODELS = (_UNCOMPRESSED, "llava_snapkv", "llava_sparsemm")


@dataclass(frozen=True)
class Settings:
    """What the demo runs.

    Attributes
    ----------
    budget : int
        Nominal entries per KV head, for the methods that compress.
    kernel_size : int
        Width of the pooling over importance.
    limit : int
        Documents per task.
    output : pathlib.Path
        Folder of the full results.
    """

    budget: int
    kernel_size: int
    limit: int
    output: Path


@dataclass(frozen=True)
class Row:
    """One model's line of the table; all figures as lmms-eval wrote them.

    Attributes
    ----------
    model : str
    scores : dict
        Score by task.
    nominal_budget : int or None
        None for the full cache.
    effective_budget : float
        Entries that were kept per KV head, mean over samples.
    kv_bytes : float
        Of the compressed prompt, mean over samples.
    prefill_seconds, decode_seconds : float
        Per sample, and per generated token.
    """

    model: str
    scores: dict[str, float]
    nominal_budget: int | None
    effective_budget: float
    kv_bytes: float
    prefill_seconds: float
    decode_seconds: float


def run(settings: Settings) -> list[Row]:
    """Evaluate every model; one lmms-eval process each, both tasks in it.

    Raises
    ------
    EvaluationError
        If a run failed, or recorded less than the table shows.
    """
    # So small a model gains little from a second thread, and on shared cores loses much by waiting for it.
    surroundings = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return [
        row_of(model, evaluate(arguments_of(model, settings), environment=surroundings)[0])
        for model in MODELS
    ]


def arguments_of(model: str, settings: Settings) -> list[str]:
    """lmms-eval's arguments for one model.

    The journal is off and batches hold one sample, so that every time is measured anew and is one sample's.
    """
    model_args = [f"pretrained={READER}", "journal=off"]
    if model != _UNCOMPRESSED:
        model_args += [
            f"budget={settings.budget}",
            f"window={WINDOW}",
            f"kernel_size={settings.kernel_size}",
        ]
    values = {
        "model": model,
        "model_args": ",".join(model_args),
        "tasks": ",".join(TASKS),
        "limit": str(settings.limit),
        "batch_size": "1",
        "output_path": str(settings.output / model),
    }
    options = [part for name, value in values.items() for part in (f"--{name}", value)]
    return [*options, "--log_samples"]


def row_of(model: str, results: ResultsFile) -> Row:
    """Read one model's figures.

    Raises
    ------
    EvaluationError
        If one is missing.
    """
    measured = results.contents.get("throughput", {})
    try:
        return Row(
            model=model,
            scores={task: results.scores(task)[metric] for task, metric in TASKS.items()},
            nominal_budget=None if model == _UNCOMPRESSED else int(measured["avg_nominal_budget"]),
            effective_budget=measured["avg_effective_budget"],
            kv_bytes=measured["avg_kv_bytes"],
            prefill_seconds=measured["avg_prefill_seconds"],
            decode_seconds=measured["avg_decode_seconds"],
        )
    except KeyError as error:
        raise EvaluationError(f"{results.path} has no figure {error.args[0]!r} of {model}") from error


def table_of(rows: list[Row], settings: Settings) -> Table:
    """The rows as a table for the terminal."""
    knobs = f"window={WINDOW}, kernel_size={settings.kernel_size}, {settings.limit} documents per task"
    # Fits into 80 columns.
    table = Table(title=f"{READER}, {knobs}", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("model", no_wrap=True)
    headings = (
        *(task.replace("_", "\n") for task in TASKS),
        "nominal\nbudget",
        "effective\nbudget",
        "KV KiB\n/sample",
        "prefill\nms",
        "decode\nms/token",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.model,
            *(f"{row.scores[task]:.3f}" for task in TASKS),
            "all" if row.nominal_budget is None else str(row.nominal_budget),
            f"{row.effective_budget:.1f}",
            f"{row.kv_bytes / 1024:.0f}",
            f"{row.prefill_seconds * 1000:.1f}",
            f"{row.decode_seconds * 1000:.2f}",
        )
    return table


def command(
    budget: Annotated[int, typer.Option(min=WINDOW + 1, help="Entries per KV head, window included.")] = 32,
    kernel_size: Annotated[int, typer.Option(min=1, help="Pooling width, odd.")] = 5,
    limit: Annotated[int, typer.Option(min=1, help="Documents per task.")] = 20,
    output: Annotated[Path, typer.Option(help="Folder of the full results.")] = Path("runs/demo"),
) -> None:
    """Run lmms-eval for FullKV, SnapKV and SparseMM on the page tasks and show one table."""
    settings = Settings(budget, kernel_size, limit, output)
    console = Console()
    try:
        rows = run(settings)
    except SparseMMError as error:
        console.print(f"[bold red]sparsemm demo failed:[/] {error}")
        raise typer.Exit(1) from error
    console.print(table_of(rows, settings))
    console.print(f"Full results, with every answer: {output.resolve()}", soft_wrap=True)
    other = 7 if kernel_size == 5 else 5
    console.print(
        f"kernel_size moves the picture: try sparsemm demo --kernel-size {other} before judging a method.",
        soft_wrap=True,
    )
    console.print(
        "A tiny model on rendered pages: it shows the mechanism, not the size of the effect at 7B.",
        soft_wrap=True,
    )
