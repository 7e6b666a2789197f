"""`sparsemm heads mask`: the paper's masking experiment of one model, as a study that is written and run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from sparsemm_eval.checks import Natural, checked, listed
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.files import check_target, users_path, write_text_atomically
from sparsemm_eval.study import commands

#: model_args that the command's own options set.
HERE = ("head_scores", "mask_ratio", "mask_seed", "mask_mode", "batch_size")
EPILOG = """Examples:

sparsemm heads mask --model tiny-reader --tasks pages_qa,pages_ocr --limit 50 --out runs/mask

sparsemm heads mask --model Qwen/Qwen2-VL-7B-Instruct --tasks ocrbench --shares 0.02,0.05,0.1
--seeds 0,1,2,3,4 --batch-size 8 --out runs/mask-qwen"""


def mask(
    model: Annotated[str, typer.Option(help="Shipped reader, hub id or folder.")],
    tasks: Annotated[str, typer.Option(help="lmms-eval tasks, commas between (see: sparsemm tasks).")],
    out: Annotated[Path, typer.Option(help="The study's folder.", parser=users_path)],
    family: Annotated[str, typer.Option(help="Of the model names. Default: the checkpoint's.")] = "vlm",
    shares: Annotated[str, typer.Option(help="Shares of all query heads, up to 0.5.")] = "0.02,0.05,0.1,0.2",
    seeds: Annotated[str, typer.Option(help="Of the random draws.")] = "0,1,2",
    scores: Annotated[
        str | None, typer.Option(help="Head scores: file or name; default those of the model.")
    ] = None,
    mode: Annotated[
        str, typer.Option(help="query: masked heads attend evenly (as published); output: they return zeros.")
    ] = "query",
    limit: Annotated[int | None, typer.Option(min=1, help="Documents per task. Default: all.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Documents at a time.")] = 1,
    model_args: Annotated[str, typer.Option(help="More model_args, as name=value,name=value.")] = "",
    nproc: Annotated[int, typer.Option(min=1, help="Processes on this machine, data parallel.")] = 1,
    workers: Annotated[int | None, typer.Option(min=1, help="Cells side by side on the CPU.")] = None,
) -> None:
    """Accuracy against the share of masked heads: the best visual heads, and random ones besides them.

    Writes OUT/masking.yaml, runs it as `sparsemm study run` does, and shows its table. Run it again to go on.
    """
    from sparsemm_eval.methods import fullkv, head_masking  # imports torch

    check_target("out", out, folder=True)
    ratios = listed(head_masking.MASK_RATIO.kind, "shares", shares)
    if not all(0 < ratio <= 0.5 for ratio in ratios):
        raise ConfigError("shares", shares, "numbers above 0 and up to 0.5: random heads are drawn besides")
    knobs: dict[str, Any] = {"mask_ratio": ratios, "mask_mode": mode}
    knobs |= {} if scores is None else {"head_scores": scores}
    study = {
        "name": "masking",
        "output": str(out),
        "models": [{"name": Path(model).name, "family": family, "pretrained": model, **_parts(model_args)}],
        "methods": [fullkv.METHOD.name, head_masking.VISUAL.name, head_masking.OTHERS.name],
        "tasks": [[checked(str, "tasks", name.strip()) for name in tasks.split(",") if name.strip()]],
        "seeds": listed(Natural, "seeds", seeds),
        "knobs": knobs,
        "limit": limit,
        "batch_size": batch_size,
        "nproc": nproc,
    }
    out.mkdir(parents=True, exist_ok=True)
    file = out / "masking.yaml"
    write_text_atomically(file, yaml.safe_dump(study, sort_keys=False, allow_unicode=True))
    commands.run(file, workers=workers)
    commands.show([out], table="masking")
    commands.figures([out])


def _parts(model_args: str) -> dict[str, Any]:
    """``name=value,name=value`` as a mapping."""
    parts = [part.partition("=") for part in model_args.split(",") if part.strip()]
    if not all(equals for _, equals, _ in parts):
        raise ConfigError("model_args", model_args, "name=value,name=value")
    found = {name.strip(): yaml.safe_load(value) for name, _, value in parts}
    taken = found.keys() & {"pretrained", "family", "name", *HERE}
    if taken:
        raise ConfigError("model_args", model_args, f"none of {', '.join(sorted(taken))}, which have options")
    return found
