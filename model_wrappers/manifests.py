"""The sixteen model names that lmms-eval learns from this package; imported at every start of lmms-eval."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

#: Model name suffix -> class name suffix.
SUFFIXES = {
    "sparsemm": "SparseMM",
    "fullkv": "FullKV",
    "snapkv": "SnapKV",
    "pyramidkv": "PyramidKV",
    "adakv": "AdaKV",
    "random": "Random",
    "mask": "Mask",
    "mask_random": "MaskRandom",
}


def manifests() -> list[ModelManifest]:
    """Manifests of all sixteen names, for the entry-point group ``lmms_eval.models``.

    The LLaVA names have a chat class and a simple one (``--force_simple``), as upstream's ``llava_hf``
    has; the Qwen2-VL names have the simple one only, as upstream's ``qwen2_vl``.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    package = __name__.rpartition(".")[0]
    llava = [
        ModelManifest(
            model_id=f"llava_{suffix}",
            simple_class_path=f"{package}.llava_simple.Llava{name}",
            chat_class_path=f"{package}.llava_chat.Llava{name}",
        )
        for suffix, name in SUFFIXES.items()
    ]
    qwen2vl = [
        ModelManifest(
            model_id=f"qwen2vl_{suffix}", simple_class_path=f"{package}.qwen2vl_simple.Qwen2VL{name}"
        )
        for suffix, name in SUFFIXES.items()
    ]
    return llava + qwen2vl
