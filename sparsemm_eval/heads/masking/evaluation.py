"""Points of the masking experiment through lmms-eval: any of its tasks, one process per point."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsemm_eval.checks import Count, checked, one_of, record
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.files import digest_of, source_digest
from sparsemm_eval.heads.masking.experiment import NOTHING, RANDOM, VISUAL, MaskPlan, Measured, Point
from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.lmms.arguments import command_line
from sparsemm_eval.lmms.evaluate import evaluate
from sparsemm_eval.lmms.results import ResultsFile
from sparsemm_eval.methods import fullkv, head_masking
from sparsemm_eval.model.families.registry import ANY_FAMILY, families
from sparsemm_eval.model.fingerprint import local_fingerprint
from sparsemm_eval.tasks import FOLDER

TAKEN = {"pretrained", "head_scores", "mask_ratio", "mask_seed", "mask_mode", "journal"}
Evaluate = Callable[..., list[ResultsFile]]


@record
class MaskEvaluation:
    """What is evaluated."""

    family: str  # the beginning of the model names
    pretrained: str  # shipped reader, hub id or folder
    tasks: tuple[str, ...]  # names as lmms-eval takes them
    folder: Path  # where results and journals go
    head_scores: str | None = None  # None: those known for the model
    limit: Count | None = None  # documents per task; None: all
    batch_size: Count = 1
    model_args: str = ""  # more of them, ``name=value`` with commas between
    processes: Count = 1

    def __post_init__(self) -> None:
        checked(one_of(*families(), ANY_FAMILY), "family", self.family)
        if not self.tasks:
            raise ConfigError("tasks", self.tasks, "at least one (see: sparsemm tasks)")
        parts = [part.partition("=") for part in self.model_args.split(",") if self.model_args]
        if not all(equals for _, equals, _ in parts) or TAKEN & {name.strip() for name, *_ in parts}:
            remedy = f"name=value,name=value with none of {', '.join(sorted(TAKEN))}"
            raise ConfigError("model_args", self.model_args, remedy)

    def identity(self, scores: HeadScores) -> dict[str, Any]:
        """Everything that decides a point's result, besides the point; JSON types."""
        # lmms-eval takes seconds to import, and only its version is wanted
        from sparsemm_eval.model_wrappers.records.identity import versions

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
        methods = {NOTHING: fullkv.METHOD, VISUAL: head_masking.VISUAL, RANDOM: head_masking.OTHERS}
        model_args: dict[str, Any] = {
            "pretrained": self.pretrained,
            # Answers are found again by everything they depend on, so all points may share a journal.
            "journal": self.folder / "journal",
        }
        if point.heads != NOTHING:
            model_args |= {"mask_ratio": point.share, "mask_mode": plan.mode, "head_scores": self.head_scores}
        model_args["mask_seed"] = point.seed
        return command_line(
            f"{self.family}_{methods[point.heads].name}",
            model_args,
            self.model_args,
            tasks=",".join(self.tasks),
            batch_size=self.batch_size,
            output_path=self.folder / "results",
            limit=self.limit,
        )

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
            {task: file.errors(task) for task in tasks},
            {task: counts[task]["effective"] for task in tasks if task in counts},
        )


def _digest_of(folder: Path) -> str:
    found = {}
    for path in folder.rglob("*"):
        if path.suffix in (".yaml", ".parquet", ".py"):
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digest_of(found)
