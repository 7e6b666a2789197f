"""A whole scoring run: load the model, score the images, write the table."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sparsemm_eval.heads.anchors.registry import anchor_named
from sparsemm_eval.heads.scores import facts as table_facts
from sparsemm_eval.heads.scores.lookup import cache_folder, file_name
from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.heads.scoring.batch_scores import ScoringRule
from sparsemm_eval.heads.scoring.score_heads import Workload, describe, score_heads
from sparsemm_eval.heads.scoring.scored_images import remove
from sparsemm_eval.heads.scoring.summary import summarise
from sparsemm_eval.model import checkpoint
from sparsemm_eval.model.placement import place


@dataclass(frozen=True)
class ScoreRun:
    """What ``sparsemm heads score`` was asked for.

    Attributes
    ----------
    model, anchor : str
    data : str or None
        Where a stored anchor's images and boxes are.
    rule : ScoringRule
        Its ``rule`` is replaced by the anchor's own.
    work : Workload
        Without the shares of processes, which the launcher decides.
    out : Path or None
        File of the table; None: the user's own tables, where ``head_scores`` finds it by the model's name.
    journal : Path or None
        Folder of finished images; None: beside ``out``, removed when the table is written.
    device, dtype : str
    revision : str or None
    """

    model: str
    anchor: str
    rule: ScoringRule
    work: Workload
    out: Path | None = None
    journal: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    data: str | None = None


def run(plan: ScoreRun, say: Callable[[str], None] = print) -> HeadScores | None:
    """Score a model and write its table.

    Returns
    -------
    HeadScores or None
        None in processes that do not lead.
    """
    out = plan.out or cache_folder() / file_name(plan.model)
    journal = plan.journal or out.with_name(out.name + ".journal")
    anchor = anchor_named(plan.anchor, plan.data)
    rule = replace(plan.rule, rule=anchor.rule)
    placement = place(plan.device, None, plan.dtype)
    leads = placement.rank == 0
    work = replace(plan.work, rank=placement.rank, world_size=placement.world_size)
    loaded = checkpoint.load(checkpoint.find(plan.model, plan.revision, "model"), placement)
    origin = {
        "model": loaded.name,
        "weights": loaded.fingerprint["weights"],
        "revision": loaded.source.commit,
        "data": plan.data and Path(plan.data).name,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
    }
    started = time.perf_counter()
    arguments = (loaded.model, loaded.processor, anchor, rule)
    score_heads(*arguments, work, journal, origin, progress=leads)
    placement.accelerator.wait_for_everyone()
    placement.accelerator.end_training()
    if not leads:
        return None
    # reading again finds what the other processes have put down
    everything = replace(work, rank=0, world_size=1)
    images = score_heads(*arguments, everything, journal, origin)
    seconds = time.perf_counter() - started
    scores = summarise(images, describe(anchor, rule, work, origin))
    scores.save(out)
    if plan.journal is None:
        remove(journal)
    for line in [*table_facts.lines(scores, top=5), f"{seconds:.1f} s, written to {out}"]:
        say(line)
    return scores
