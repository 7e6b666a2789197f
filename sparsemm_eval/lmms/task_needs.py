"""What some benchmarks need besides Python, asked for before hours of generation instead of after them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

import yaml

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.tasks import FOLDER

SUITE = "sparsemm_suite"


def suite_members() -> list[str]:
    """The tasks that make up `sparsemm_suite`."""
    return yaml.safe_load((FOLDER / "suite" / f"{SUITE}.yaml").read_text(encoding="utf-8"))["task"]


def check(tasks: Iterable[str]) -> list[str]:
    """Look for what the tasks need on this machine.

    Parameters
    ----------
    tasks : iterable of str

    Returns
    -------
    list of str
        Warnings.

    Raises
    ------
    UnsupportedError
        If TextCaps is among the tasks and there is no java: upstream tokenises captions with it, and its
        failure loses the scores of all tasks of the run.
    """
    names = [member for name in tasks for member in (suite_members() if name == SUITE else [name])]
    captions = [name for name in names if name.startswith("textcaps")]
    if captions and shutil.which("java") is None:
        raise UnsupportedError(
            f"{captions[0]} needs java on the PATH, for the caption tokenizer and METEOR; install a Java "
            "runtime (for instance the package default-jre-headless), or leave the task out"
        )
    if "mmbench_en_dev" in names and not os.environ.get("OPENAI_API_KEY"):
        return [
            "mmbench_en_dev asks a judge model about unclear answers; without OPENAI_API_KEY upstream "
            "retries for a while and then draws a random letter. mmbench_en_dev_static needs no key."
        ]
    return []
