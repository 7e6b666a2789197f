"""The evaluation that a wrapper runs in: what lmms-eval was asked for that no wrapper can do is refused."""

from __future__ import annotations

from typing import Any

from sparsemm_eval import compat
from sparsemm_eval.errors import UnsupportedError

#: Arguments of lmms-eval, and what to do instead.
REFUSED = {
    "use_cache": "leave it out. Its store knows neither weights nor head scores; the model_arg journal keeps "
    "answers, too, and finds them by everything they depend on",
    "cache_requests": "leave it out: requests hold functions, which cannot be stored",
    "system_instruction": "give the model_arg system_prompt, which is a text or the path of a file with it",
    "apply_chat_template": "leave it out: the checkpoint's chat template is always applied",
    "fewshot_as_multiturn": "leave it out: every question is asked without examples",
    "num_fewshot": "leave it out: examples would lose their images",
    "check_integrity": "leave it out: it looks for the tests of lmms-eval's own repository",
}


def check_evaluation() -> None:
    """Refuse an evaluation that would end in a crash, or in scores that are not what was asked for.

    Raises
    ------
    UnsupportedError
        Naming lmms-eval's argument and what to do instead.
    """
    given = compat.evaluation_arguments()
    for name, remedy in REFUSED.items():
        if given.get(name):
            raise UnsupportedError(f"--{name} {given[name]} is not supported: {remedy}")


def gen_kwargs_of_the_user() -> dict[str, Any]:
    """What ``--gen_kwargs`` says; tasks' own settings left out."""
    given = compat.evaluation_arguments().get("gen_kwargs")
    return given if isinstance(given, dict) else {}
