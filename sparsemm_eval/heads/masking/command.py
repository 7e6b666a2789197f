"""``sparsemm heads mask``: what a model loses without its visual heads, on any lmms-eval task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """Examples:

sparsemm heads mask --model tiny-reader --tasks pages_qa,pages_ocr --limit 50 --out runs/mask

sparsemm heads mask --model Qwen/Qwen2-VL-7B-Instruct --family qwen2vl --tasks ocrbench --shares 0.02,0.05,0.1
--seeds 0,1,2,3,4 --batch-size 8 --out runs/mask-qwen"""


def command(
    model: Annotated[str, typer.Option(help="Shipped reader, hub id, or folder of a checkpoint.")],
    tasks: Annotated[str, typer.Option(help="lmms-eval tasks, commas between (see: sparsemm tasks).")],
    out: Annotated[Path, typer.Option(help="Folder of tables, figure, results and journals.")],
    family: Annotated[str, typer.Option(help="llava or qwen2vl.")] = "llava",
    shares: Annotated[
        str, typer.Option(help="Shares of all query heads to mask, up to 0.5.")
    ] = "0.02,0.05,0.1,0.2",
    seeds: Annotated[str, typer.Option(help="Of the random draws.")] = "0,1,2",
    scores: Annotated[
        str | None, typer.Option(help="Head scores. Default: those known for the model.")
    ] = None,
    mode: Annotated[
        str,
        typer.Option(help="query: masked heads attend evenly (as published); output: they return zeros."),
    ] = "query",
    metric: Annotated[
        str | None, typer.Option(help="Metric to show. Default: the first of each task.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents per task. Default: all.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Documents at a time.")] = 1,
    model_args: Annotated[str, typer.Option(help="More model_args, as name=value,name=value.")] = "",
    nproc: Annotated[int, typer.Option(min=1, help="Processes on this machine, data parallel.")] = 1,
) -> None:
    """Accuracy against the share of masked heads: the best visual heads, and random ones besides them.

    Finished evaluations are found again in the folder, and a killed one goes on from its journal.
    """
    from sparsemm_eval.checks import Natural, Share, listed
    from sparsemm_eval.heads.masking import experiment, report
    from sparsemm_eval.heads.masking.evaluation import MaskEvaluation
    from sparsemm_eval.heads.scores.lookup import resolve

    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    drawn = tuple(listed(Natural, "seeds", seeds))
    plan = experiment.MaskPlan(tuple(listed(Share, "shares", shares)), drawn, mode)
    table = resolve(scores, model)
    experiment.check_shares(plan, table)
    work = MaskEvaluation(family, model, names, out, scores, limit, batch_size, model_args, nproc)
    found = experiment.run(
        plan, work.identity(table), lambda point: work.measure(plan, point), out, typer.echo
    )
    curves = experiment.curves(found, metric)
    title = f"{Path(model).name}: masked heads (mode {mode})"
    written = report.save_all(curves, table.table.numel(), out, title)
    typer.echo(report.markdown(curves, table.table.numel()))
    typer.echo("written to " + ", ".join(map(str, written)))
