"""A whole scoring run: load the model, score the images in all processes, write the table."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sparsemm_eval.files import source_digest
from sparsemm_eval.heads.anchors.registry import anchor_named
from sparsemm_eval.heads.scores import facts as table_facts
from sparsemm_eval.heads.scores.lookup import cache_folder, file_name
from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.heads.scoring.batch_scores import ScoringRule
from sparsemm_eval.heads.scoring.score_heads import Workload, describe, score_heads, summarise
from sparsemm_eval.heads.scoring.scored_images import remove
from sparsemm_eval.model import checkpoint
from sparsemm_eval.model.placement import place


def run(
    model: str,
    anchor: str,
    rule: ScoringRule,
    work: Workload,
    *,
    out: Path | None = None,
    journal: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    data: str | None = None,
    say: Callable[[str], None] = print,
) -> HeadScores | None:
    """Score a model and write its table.

    Parameters
    ----------
    rule : ScoringRule
        Its ``rule`` is replaced by the anchor's own.
    work : Workload
        Without the shares of processes, which the launcher decides.
    out : Path, optional
        File of the table; None: the user's own tables, where ``head_scores`` finds it by the model's name.
    journal : Path, optional
        Folder of finished images; None: beside ``out``, removed when the table is written.
    data : str, optional
        Where a stored anchor's images and boxes are.

    Returns
    -------
    HeadScores or None
        None in processes that do not lead.
    """
    out = out or cache_folder() / file_name(model)
    finished = journal or out.with_name(out.name + ".journal")
    source = anchor_named(anchor, data)
    rule = replace(rule, rule=source.rule)
    placement = place(device, None, dtype)
    work = replace(work, rank=placement.rank, world_size=placement.world_size)
    loaded = checkpoint.load(checkpoint.find(model, revision, "model"), placement)
    origin = {
        "model": loaded.name,
        "weights": loaded.fingerprint["weights"],
        "revision": loaded.source.commit,
        "data": data and Path(data).name,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
    }
    identity = {**origin, "files": loaded.fingerprint["files"], "source": source_digest()}
    started = time.perf_counter()
    arguments = (loaded.model, loaded.processor, source, rule)
    score_heads(*arguments, work, finished, identity, progress=placement.rank == 0)
    placement.accelerator.wait_for_everyone()
    placement.accelerator.end_training()
    if placement.rank != 0:
        return None
    # reading again finds what the other processes have put down
    images = score_heads(*arguments, replace(work, rank=0, world_size=1), finished, identity)
    seconds = time.perf_counter() - started
    scores = summarise(images, describe(source, rule, work, origin))
    scores.save(out)
    if journal is None:
        remove(finished)
    for line in [*table_facts.lines(scores, top=5), f"{seconds:.1f} s, written to {out}"]:
        say(line)
    return scores
