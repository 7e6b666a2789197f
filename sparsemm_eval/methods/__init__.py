"""KV-compression methods: which entries of a prompt every KV head keeps. One file per method."""

from sparsemm_eval.methods.base import Knob, Method, PromptView, Rotation, Score, Style
from sparsemm_eval.methods.keep import keep
from sparsemm_eval.methods.registry import method_named, methods, register, scores

__all__ = [
    "Knob", "Method", "PromptView", "Rotation", "Score", "Style", "keep", "method_named", "methods",
    "register", "scores",
]  # fmt: skip
