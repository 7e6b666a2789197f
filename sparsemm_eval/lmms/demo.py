"""`sparsemm demo`: three methods on the shipped reader through the real lmms-eval command, in one table."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from sparsemm_eval.checks import checked, one_of
from sparsemm_eval.errors import EvaluationError
from sparsemm_eval.files import users_path
from sparsemm_eval.lmms.arguments import command_line
from sparsemm_eval.lmms.evaluate import evaluate
from sparsemm_eval.lmms.results import ResultsFile
from sparsemm_eval.lmms.tasks import PAGE_METRICS as TASKS
from sparsemm_eval.model.images import rgb_image

if TYPE_CHECKING:
    from sparsemm_eval.config import CompressionConfig
    from sparsemm_eval.methods.base import Method

FAMILY = "llava"
# Prompts of pages are short: a question is about as long as the observation window.
WINDOWS = {"tiny-reader": 8, "smol-reader": 16}
TIMED_TOKENS = 9  # per document: the first ends the prefill, each of the others is a decode step
HEADINGS = (
    *(task.replace("_", "\n") for task in TASKS),
    "nominal\nbudget",
    "effective\nbudget",
    "KV KiB\n/sample",
    "prefill\nCPU ms\n/sample",
    "decode\nCPU ms\n/token",
)


@dataclass(frozen=True)
class Settings:
    """What the demo runs."""

    reader: str
    budget: int  # nominal entries per KV head, for the methods that compress
    kernel_size: int  # width of the pooling over importance
    limit: int  # documents per task
    output: Path  # folder of the full results

    @property
    def window(self) -> int:
        """The observation window."""
        return WINDOWS[self.reader]

    def knobs(self, method: Method) -> dict[str, int]:
        """The compression's knobs; none for the full cache."""
        if not method.evicts:
            return {}
        return {"budget": self.budget, "window": self.window, "kernel_size": self.kernel_size}


def compared() -> tuple[Method, ...]:
    """The methods in the table, the full cache first."""
    # torch takes seconds to import, and other commands need not wait for it.
    from sparsemm_eval.methods import fullkv, snapkv, sparsemm

    return fullkv.METHOD, snapkv.METHOD, sparsemm.METHOD


def run(settings: Settings) -> list[list[str]]:
    """The table's rows: every method evaluated in one lmms-eval process, and then timed beside the others.

    Raises
    ------
    EvaluationError
        If a run failed, or recorded less than the table shows.
    """
    configs_of(settings)  # before the first of them runs
    # So small a model gains little from a second thread, and on shared cores loses much by waiting for it.
    surroundings = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    files = [evaluate(arguments_of(method, settings), environment=surroundings)[0] for method in compared()]
    measured = zip(compared(), files, cpu_times(settings), strict=True)
    return [row_of(method, file, times) for method, file, times in measured]


def arguments_of(method: Method, settings: Settings) -> list[str]:
    """lmms-eval's arguments for one method; without journal, so that every answer is generated."""
    model = f"{FAMILY}_{method.name}"
    return [
        *command_line(
            model,
            {"pretrained": settings.reader, "journal": "off", **settings.knobs(method)},
            tasks=",".join(TASKS),
            limit=settings.limit,
            batch_size=1,
            output_path=settings.output / model,
        ),
        "--log_samples",
    ]


def configs_of(settings: Settings) -> list[CompressionConfig]:
    """The compression of every method; a ConfigError for a knob that it cannot have."""
    from sparsemm_eval.config import CompressionConfig

    return [
        CompressionConfig.fitting(method.name, head_scores=settings.reader, **settings.knobs(method))
        for method in compared()
    ]


def cpu_times(
    settings: Settings, clock: Callable[[], float] = time.process_time
) -> list[tuple[float, float]]:
    """Medians of the methods on the tasks' documents: seconds of a prefill, and of a decode step.

    All on one thread of this process. The methods take turns at every document, so that whatever else the
    machine does hits all of them alike. The clock's seconds are by default the CPU time of the process, which
    waiting for others is no part of. A prefill ends with the first token.
    """
    import torch
    from transformers.utils import logging

    from sparsemm_eval.heads.anchors.record import AnchorSample
    from sparsemm_eval.heads.scoring.answers import encode_prompts
    from sparsemm_eval.model import checkpoint
    from sparsemm_eval.model.placement import place
    from sparsemm_eval.model.session import compress
    from sparsemm_eval.pages.readers.reading import documents

    logging.disable_progress_bar()
    loaded = checkpoint.load(checkpoint.find(settings.reader), place("cpu", None, "float32"))
    loaded.model.generation_config.eos_token_id = None  # every method takes as many steps
    configs = configs_of(settings)
    prefills, steps = [[] for _ in configs], [[] for _ in configs]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for document in itertools.chain(*(documents(task, settings.limit) for task in TASKS)):
            image = rgb_image(document["image"])
            sample = AnchorSample("document", image, document["question"], document["answer"], ())
            inputs = encode_prompts(loaded.model, loaded.processor, [sample])
            for number, config in enumerate(configs):
                with compress(loaded.model, config):
                    marks = _token_times(loaded.model, inputs, clock)
                prefill, *decode = [after - before for before, after in itertools.pairwise(marks)]
                prefills[number].append(prefill)
                steps[number] += decode
    finally:
        torch.set_num_threads(threads)
    return [(median(first), median(rest)) for first, rest in zip(prefills, steps, strict=True)]


def _token_times(model: Any, inputs: dict[str, Any], clock: Callable[[], float]) -> list[float]:
    """What the clock says before the prompt and after every generated token."""
    import torch

    marks: list[float] = []

    def note(tokens: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        marks.append(clock())
        return torch.zeros(len(tokens), dtype=torch.bool)

    with torch.inference_mode():
        marks.append(clock())
        model.generate(**inputs, do_sample=False, max_new_tokens=TIMED_TOKENS, stopping_criteria=[note])
    return marks


def row_of(method: Method, results: ResultsFile, times: tuple[float, float]) -> list[str]:
    """One method's cells; all but the times as lmms-eval recorded it, means over samples.

    Raises
    ------
    EvaluationError
        If a figure is missing.
    """
    measured = results.contents.get("throughput", {})
    try:
        return [
            f"{FAMILY}_{method.name}",
            *(f"{results.scores(task)[metric]:.3f}" for task, metric in TASKS.items()),
            f"{measured['avg_nominal_budget']:.0f}" if method.evicts else "all",
            f"{measured['avg_effective_budget']:.1f}",
            f"{measured['avg_kv_bytes_per_sample'] / 1024:.0f}",
            f"{times[0] * 1000:.1f}",
            f"{times[1] * 1000:.2f}",
        ]
    except KeyError as error:
        raise EvaluationError(f"{results.path} has no figure {error.args[0]!r} of {method.name}") from error


def table_of(rows: list[list[str]], settings: Settings) -> Table:
    """The rows as a table for the terminal, 80 columns wide."""
    knobs = (
        f"window={settings.window}, kernel_size={settings.kernel_size}, {settings.limit} documents per task"
    )
    table = Table(title=f"{settings.reader}, {knobs}", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("model", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def command(
    reader: Annotated[str, typer.Option(help=" or ".join(WINDOWS) + ".")] = "tiny-reader",
    budget: Annotated[int, typer.Option(min=9, help="Entries per KV head, window included.")] = 32,
    kernel_size: Annotated[int, typer.Option(min=1, help="Pooling width, odd.")] = 5,
    limit: Annotated[int, typer.Option(min=1, help="Documents per task.")] = 20,
    output: Annotated[Path, typer.Option(help="Folder of the full results.", parser=users_path)] = Path(
        "runs/demo"
    ),
) -> None:
    """Run lmms-eval for FullKV, SnapKV and SparseMM on the page tasks and show one table."""
    settings = Settings(checked(one_of(*WINDOWS), "reader", reader), budget, kernel_size, limit, output)
    rows, console = run(settings), Console()
    console.print(table_of(rows, settings))
    other = 7 if kernel_size == 5 else 5
    for line in (
        f"Full results, with every answer: {output.resolve()}",
        f"Scores depend on kernel_size: try sparsemm demo --kernel-size {other} before judging a method.",
        "A small model on rendered pages: it shows the mechanism, not the size of the effect at 7B.",
    ):
        console.print(line, soft_wrap=True)
