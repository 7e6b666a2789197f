"""The model names that lmms-eval learns from this package: ``<family>_<method>``, and ``vlm_<method>``."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparsemm_eval.errors import SparseMMError
from sparsemm_eval.methods.base import Method
from sparsemm_eval.methods.registry import methods
from sparsemm_eval.model.families.base import Family
from sparsemm_eval.model.families.registry import ANY_FAMILY, families

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

CHAT, SIMPLE = "__chat", "__simple"


def model_names() -> dict[str, tuple[Family | None, Method]]:
    """Every model name, and what it stands for; family None: the checkpoint's own."""
    prefixes = {**families(), ANY_FAMILY: None}
    return {
        f"{prefix}_{method.name}": (family, method)
        for prefix, family in prefixes.items()
        for method in methods().values()
    }


def manifests() -> list[ModelManifest]:
    """Manifests of all names, for the entry-point group ``lmms_eval.models``; called at every start.

    A name has a simple class (``--force_simple``) and, where upstream speaks the chat protocol with the
    family, a chat class. Both are made by ``wrapper`` when lmms-eval asks for them.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    try:
        names = model_names()
    except SparseMMError as error:
        # lmms-eval would go on without these names and only say that the model is unknown
        print(f"sparsemm: {error}", file=sys.stderr)
        raise
    settle(names, sys.argv)
    path = f"{__name__.rpartition('.')[0]}.wrapper."
    return [
        ModelManifest(
            model_id=name,
            simple_class_path=path + name + SIMPLE,
            chat_class_path=path + name + CHAT if family is None or family.messages_prompt else None,
        )
        for name, (family, _) in names.items()
    ]


def settle(model_names: Collection[str], arguments: Sequence[str]) -> None:
    """Change the environment of a process whose command line names one of our models.

    lmms-eval starts a W&B run in every process, before any model is asked: all but the first log nothing. It
    writes ``HF_TOKEN`` into its log and its results: the token goes on under the variable's older name, which
    the Hub's library reads as well, unless results are to be pushed to the Hub.
    """
    named = set(re.split(r"[=\s,]", " ".join(arguments)))
    for file in (Path(argument) for argument in arguments if argument.endswith((".yaml", ".yml", ".json"))):
        if file.is_file():
            named |= set(re.findall(r"[\w-]+", file.read_text(encoding="utf-8", errors="replace")))
    if named.isdisjoint(model_names):
        return
    if os.environ.get("RANK", "0") != "0":
        os.environ["WANDB_MODE"] = "disabled"
    pushes = any("hf_hub_log_args" in argument for argument in arguments)
    if "HF_TOKEN" in os.environ and not pushes:
        os.environ["HUGGING_FACE_HUB_TOKEN"] = os.environ.pop("HF_TOKEN")
