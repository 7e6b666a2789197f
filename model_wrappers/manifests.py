"""The model names that lmms-eval learns from this package: ``<family>_<method>``, and ``vlm_<method>``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sparsemm_eval.errors import SparseMMError
from sparsemm_eval.methods.base import Method
from sparsemm_eval.methods.registry import methods
from sparsemm_eval.model.families.base import Family
from sparsemm_eval.model.families.registry import ANY_FAMILY, families
from sparsemm_eval.model_wrappers.start import settle

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
    family, a chat class. Both are made by ``classes`` when lmms-eval asks for them.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    try:
        names = model_names()
    except SparseMMError as error:
        # lmms-eval would go on without these names and only say that the model is unknown
        print(f"sparsemm: {error}", file=sys.stderr)
        raise
    settle(names, sys.argv)
    path = f"{__name__.rpartition('.')[0]}.classes."
    return [
        ModelManifest(
            model_id=name,
            simple_class_path=path + name + SIMPLE,
            chat_class_path=path + name + CHAT if family is None or family.messages_prompt else None,
        )
        for name, (family, _) in names.items()
    ]
