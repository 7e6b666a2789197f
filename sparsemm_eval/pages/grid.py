"""Accuracy of every method over budgets and pooling widths on the page tasks, without lmms-eval in between.

The same held-out documents, prompts, answer lengths and metrics as the tasks pages_qa and pages_ocr; one
process for all cells, so that sixty of them take minutes and not an hour.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from sparsemm_eval import CompressionConfig, HeadScores, compress
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.pages.checkpoints import resolve
from sparsemm_eval.pages.prove import answer
from sparsemm_eval.tasks import FOLDER
from sparsemm_eval.tasks.pages.metrics import character_accuracy, exact_match

WINDOW = 8  # the pages' questions are short
MAX_NEW_TOKENS = {"pages_qa": 16, "pages_ocr": 448}  # as in the tasks' YAML
METRICS = {"pages_qa": exact_match, "pages_ocr": character_accuracy}
METHODS = ("snapkv", "pyramidkv", "adakv", "sparsemm", "random")


@dataclass(frozen=True)
class Cell:
    """One configuration; ``budget`` and ``kernel_size`` mean nothing to ``fullkv``."""

    method: str
    budget: int
    kernel_size: int


@dataclass(frozen=True)
class Outcome:
    """A cell's score and what it kept, mean over a task's documents.

    Attributes
    ----------
    score, standard_error : float
        Exact match or character accuracy, and the standard error of its mean.
    effective_budget : float
        Entries kept per KV head.
    documents : int
    """

    method: str
    budget: int
    kernel_size: int
    task: str
    score: float
    standard_error: float
    effective_budget: float
    documents: int


def cells(budgets: Iterable[int], kernel_sizes: Iterable[int]) -> list[Cell]:
    """FullKV and every method at every budget and pooling width."""
    grid = [Cell(*knobs) for knobs in itertools.product(METHODS, budgets, kernel_sizes)]
    return [Cell("fullkv", 0, 0), *grid]


def documents(task: str, limit: int | None) -> list[dict[str, Any]]:
    """A task's held-out documents, images decoded."""
    import datasets

    path = str(FOLDER / "pages" / "data" / f"{task}.parquet")
    rows = datasets.load_dataset("parquet", data_files=path, split="train")
    return list(rows.select(range(min(limit or len(rows), len(rows)))))


class Grid:
    """Runs cells with one reader.

    Parameters
    ----------
    reader : str
        Name of a shipped reader.
    limit : int, optional
        Documents per task; all by default.
    batch_size : int
        Rows per ``generate`` call.
    """

    def __init__(self, reader: str, limit: int | None = None, batch_size: int = 32):
        folder = resolve(reader)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.processor.tokenizer.padding_side = "left"
        self.scores = HeadScores.resolve(None, reader)
        self.documents = {task: documents(task, limit) for task in METRICS}
        self.batch_size = batch_size

    def run(self, cell: Cell, task: str) -> Outcome:
        """Answer a task's documents under one configuration."""
        knobs = {} if cell.method == "fullkv" else {"budget": cell.budget, "kernel_size": cell.kernel_size}
        scores = self.scores if cell.method == "sparsemm" else None
        config = CompressionConfig(cell.method, window=WINDOW, head_scores=scores, **knobs)
        points, kept = [], []
        rows = self.documents[task]
        with compress(self.model, config) as session:
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                replies = answer(
                    self.model,
                    self.processor,
                    [row["image"].convert("RGB") for row in batch],
                    [row["question"] for row in batch],
                    MAX_NEW_TOKENS[task],
                )
                points += [score_of(task, *pair) for pair in zip(replies, batch, strict=True)]
                kept += session.stats.effective_budgets.tolist()
        mean, error = mean_and_error(points)
        return Outcome(**asdict(cell), task=task, score=mean, standard_error=error,
                       effective_budget=sum(kept) / len(kept), documents=len(points))  # fmt: skip


def score_of(task: str, reply: str, row: dict[str, Any]) -> float:
    """A reply's score as the task gives it."""
    if task == "pages_qa":
        reply = reply.split("\n")[0]  # the task's `until`
    return METRICS[task](reply, row["answer"])


def mean_and_error(points: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard error of the mean."""
    values = torch.tensor(points, dtype=torch.float64)
    error = values.std() / len(points) ** 0.5 if len(points) > 1 else torch.tensor(0.0)
    return float(values.mean()), float(error)


def run(grid: Grid, wanted: Sequence[Cell], journal: Path) -> list[Outcome]:
    """Run cells and keep each in ``journal`` (JSON lines): a second call goes on where a first ended."""
    done = _finished(journal) if journal.exists() else []
    known = {(o.method, o.budget, o.kernel_size, o.task): o for o in done}
    todo = [
        (cell, task) for cell in wanted for task in METRICS if (*asdict(cell).values(), task) not in known
    ]
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a") as file:
        for cell, task in tqdm(todo, desc="Cells"):
            outcome = grid.run(cell, task)
            known[(*asdict(cell).values(), task)] = outcome
            file.write(json.dumps(asdict(outcome)) + "\n")
            file.flush()
    return [known[(*asdict(cell).values(), task)] for cell in wanted for task in METRICS]


def _finished(journal: Path) -> list[Outcome]:
    try:
        return [Outcome(**json.loads(line)) for line in journal.read_text().splitlines()]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "out", str(journal), f"a whole journal; remove its broken line ({error})"
        ) from error


def markdown(outcomes: Sequence[Outcome]) -> str:
    """A table per task and pooling width: methods by budget, effective budget in parentheses."""
    full = {o.task: o for o in outcomes if o.method == "fullkv"}
    rest = [o for o in outcomes if o.method != "fullkv"]
    budgets = sorted({o.budget for o in rest})
    lines = []
    for task, kernel in itertools.product(METRICS, sorted({o.kernel_size for o in rest})):
        found = {(o.method, o.budget): o for o in rest if (o.task, o.kernel_size) == (task, kernel)}
        lines += [f"### {task}, kernel_size {kernel}", ""]
        lines += ["| method | " + " | ".join(map(str, budgets)) + " |", "|---" * (len(budgets) + 1) + "|"]
        for method in METHODS:
            row = " | ".join(_figures(found[method, budget]) for budget in budgets)
            lines.append(f"| {method} | {row} |")
        lines += ["", f"FullKV: {_figures(full[task])}; {full[task].documents} documents.", ""]
    return "\n".join(lines)


def _figures(outcome: Outcome) -> str:
    return f"{outcome.score:.3f} ± {outcome.standard_error:.3f} ({outcome.effective_budget:.1f})"
