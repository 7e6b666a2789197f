"""Points of the masking experiment through lmms-eval: any of its tasks, one process per point."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.masking.experiment import NOTHING, VISUAL, MaskPlan, Measured, Point
from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.lmms.evaluate import evaluate
from sparsemm_eval.lmms.results import ResultsFile
from sparsemm_eval.model.fingerprint import local_fingerprint
from sparsemm_eval.tasks import FOLDER

FAMILIES = ("llava", "qwen2vl")
Evaluate = Callable[..., list[ResultsFile]]


@dataclass(frozen=True)
class MaskEvaluation:
    """What is evaluated.

    Attributes
    ----------
    family : str
        ``llava`` or ``qwen2vl``: the beginning of the model names.
    pretrained : str
        Shipped reader, hub id or folder.
    tasks : tuple of str
        Names as lmms-eval takes them.
    folder : pathlib.Path
        Where results and journals go.
    head_scores : str or None
        None: those known for the model.
    limit : int or None
        Documents per task; None: all.
    batch_size : int
    model_args : str
        More of them, ``name=value`` with commas between.
    processes : int

    Raises
    ------
    ConfigError
    """

    family: str
    pretrained: str
    tasks: tuple[str, ...]
    folder: Path
    head_scores: str | None = None
    limit: int | None = None
    batch_size: int = 1
    model_args: str = ""
    processes: int = 1

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ConfigError("family", self.family, "one of " + ", ".join(FAMILIES))
        if not self.tasks:
            raise ConfigError("tasks", self.tasks, "at least one (see: sparsemm tasks)")
        taken = {"pretrained", "head_scores", "mask_ratio", "mask_seed", "mask_mode", "journal"}
        given = {part.partition("=")[0] for part in self.model_args.split(",")}
        if taken & given:
            raise ConfigError("model_args", self.model_args, "none of " + ", ".join(sorted(taken)))

    def identity(self, scores: HeadScores) -> dict[str, Any]:
        """Everything that decides a point's result, besides the point; JSON types."""
        # the one place that may know lmms-eval's version and the wrappers' source
        from sparsemm_eval.model_wrappers.records.identity import source_digest, versions

        checkpoint = local_fingerprint(self.pretrained, "model")
        return {
            "family": self.family,
            "pretrained": self.pretrained if checkpoint is None else Path(self.pretrained).resolve().name,
            "checkpoint": checkpoint,
            "head_scores": scores.digest(),
            "tasks": list(self.tasks),
            "own_tasks": _digest_of(FOLDER),
            "limit": self.limit,
            "model_args": self.model_args,
            "source": source_digest(),
            **versions(),
        }

    def arguments(self, plan: MaskPlan, point: Point) -> list[str]:
        """lmms-eval's command line for one point."""
        suffix = {NOTHING: "fullkv", VISUAL: "mask"}.get(point.heads, "mask_random")
        # answers are found again by everything they depend on, so all points may share a journal
        model_args = [f"pretrained={self.pretrained}", f"journal={self.folder / 'journal'}"]
        if point.heads != NOTHING:
            model_args += [f"mask_ratio={point.share}", f"mask_mode={plan.mode}"]
            if self.head_scores is not None:
                model_args.append(f"head_scores={self.head_scores}")
        if point.seed is not None:
            model_args.append(f"mask_seed={point.seed}")
        model_args += [self.model_args] if self.model_args else []
        values = {
            "model": f"{self.family}_{suffix}",
            "model_args": ",".join(model_args),
            "tasks": ",".join(self.tasks),
            "batch_size": str(self.batch_size),
            "output_path": str(self.folder / "results"),
        }
        if self.limit is not None:
            values["limit"] = str(self.limit)
        return [part for name, value in values.items() for part in (f"--{name}", value)]

    def measure(self, plan: MaskPlan, point: Point, evaluate: Evaluate = evaluate) -> Measured:
        """Evaluate one point.

        Raises
        ------
        EvaluationError
            If lmms-eval failed or left a task without scores.
        """
        [file] = evaluate(self.arguments(plan, point), self.processes)
        tasks = list(dict.fromkeys(task for name in self.tasks for task in file.tasks_of(name)))
        counts = file.contents.get("n-samples", {})
        return Measured(
            {task: file.scores(task) for task in tasks},
            {task: _errors(file, task) for task in tasks},
            {task: counts[task]["effective"] for task in tasks if task in counts},
        )


def _errors(file: ResultsFile, task: str) -> dict[str, float]:
    """Standard errors by metric name, where lmms-eval gives numbers."""
    found = {}
    for name, value in file.contents["results"][task].items():
        metric, ending, _ = name.partition("_stderr,")
        if ending and isinstance(value, (int, float)) and math.isfinite(value):
            found[metric] = float(value)
    return found


def _digest_of(folder: Path) -> str:
    content = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".yaml", ".parquet", ".py"):
            content.update(path.name.encode())
            content.update(path.read_bytes())
    return content.hexdigest()
