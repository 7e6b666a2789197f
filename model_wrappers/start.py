"""What must be settled before lmms-eval reads its command line: who talks to W&B, and what gets written."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path


def settle(model_names: Collection[str], arguments: Sequence[str]) -> None:
    """Change the environment of a process whose command line names one of our models.

    lmms-eval starts a W&B run in every process, before any model is asked: all but the first log nothing. It
    writes ``HF_TOKEN`` into its log and its results: the token goes on under the variable's older name, which
    the Hub's library reads as well, unless results are to be pushed to the Hub.
    """
    if not _names_one_of(model_names, arguments):
        return
    if os.environ.get("RANK", "0") != "0":
        os.environ["WANDB_MODE"] = "disabled"
    pushes = any("hf_hub_log_args" in argument for argument in arguments)
    if "HF_TOKEN" in os.environ and not pushes:
        os.environ["HUGGING_FACE_HUB_TOKEN"] = os.environ.pop("HF_TOKEN")


def _names_one_of(model_names: Collection[str], arguments: Sequence[str]) -> bool:
    named = set(re.split(r"[=\s,]", " ".join(arguments)))
    for file in (Path(argument) for argument in arguments if argument.endswith((".yaml", ".yml", ".json"))):
        if file.is_file():
            named |= set(re.findall(r"[\w-]+", file.read_text(encoding="utf-8", errors="replace")))
    return not named.isdisjoint(model_names)
