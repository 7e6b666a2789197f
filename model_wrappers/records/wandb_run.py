"""The W&B run that ``lmms-eval --wandb_args`` starts: one for all processes, with what a comparison needs."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

_SETTINGS = ("model_name", "family", "pretrained", "dtype", "decode", "kernel", "batch_size", "processes")


def leave_it_to_rank_zero(model_names: Collection[str], arguments: list[str]) -> None:
    """Let processes other than the first log nothing, where lmms-eval's command line names one of our models.

    lmms-eval starts a run in every process, before any model is asked.
    """
    if os.environ.get("RANK", "0") == "0":
        return
    named = set(re.split(r"[=\s,]", " ".join(arguments)))
    for file in (Path(argument) for argument in arguments if argument.endswith((".yaml", ".yml", ".json"))):
        if file.is_file():
            named |= set(re.findall(r"[\w-]+", file.read_text(encoding="utf-8", errors="replace")))
    if named & set(model_names):
        os.environ["WANDB_MODE"] = "disabled"


def describe(record: Mapping[str, Any]) -> None:
    """Give a run that is open in this process flat config and summary, from a run record.

    Config, to group runs by: family, method, budget, every knob, name of the head scores, decode mode.
    Summary: everything measured, under the names of the run record.
    """
    run = getattr(sys.modules.get("wandb"), "run", None)
    if run is None:
        return
    config = {name: record[name] for name in _SETTINGS} | record["compression"]
    config["head_scores"] = record["head_scores_name"]
    run.config.update(config, allow_val_change=True)
    run.summary.update(record["measured"])
