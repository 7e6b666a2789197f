"""The W&B run that ``lmms-eval --wandb_args`` starts: one for all processes, with what a comparison needs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

_SETTINGS = ("model_name", "family", "pretrained", "dtype", "decode", "kernel", "batch_size", "processes")


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
