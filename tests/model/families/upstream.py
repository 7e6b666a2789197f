"""Upstream's wrappers, to compare with. They import decord, for videos alone, which few platforms have."""

import importlib.util
import sys
from types import ModuleType


def wrapper(module, name):
    """A class of upstream's, also where there is no decord."""
    missing = importlib.util.find_spec("decord") is None
    if missing:
        sys.modules["decord"] = stand_in = ModuleType("decord")
        stand_in.VideoReader = stand_in.cpu = None
    try:
        return getattr(importlib.import_module(f"lmms_eval.models.{module}"), name)
    finally:
        if missing:
            del sys.modules["decord"]  # others ask whether it is installed


ChatLlavaHf = wrapper("chat.llava_hf", "LlavaHf")
SimpleLlavaHf = wrapper("simple.llava_hf", "LlavaHf")
Qwen2_VL = wrapper("simple.qwen2_vl", "Qwen2_VL")
