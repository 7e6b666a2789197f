"""The lmms-eval model class of every model name and protocol, made when it is asked for."""

from __future__ import annotations

from functools import cache

from sparsemm_eval.model_wrappers.manifests import CHAT, SIMPLE, model_names
from sparsemm_eval.model_wrappers.wrapper import Wrapper


@cache
def model_class(name: str, *, simple: bool) -> type[Wrapper]:
    """The class of a model name under one of lmms-eval's protocols.

    Raises
    ------
    KeyError
        If there is no such name.
    """
    family, method = model_names()[name]
    title = "the checkpoint's own family" if family is None else family.title
    return type(
        name,
        (Wrapper,),
        {
            "__module__": __name__,
            "__doc__": f"``{name}``: {title}, {method.title}: {method.meaning}.",
            "is_simple": simple,
            "model_name": name,
            "family": family,
            "method": method,
        },
    )


def __getattr__(attribute: str) -> type[Wrapper]:
    for ending in (SIMPLE, CHAT):
        name = attribute.removesuffix(ending)
        if name != attribute and name in model_names():
            return model_class(name, simple=ending == SIMPLE)
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
