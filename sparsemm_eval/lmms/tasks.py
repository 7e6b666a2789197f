"""`sparsemm tasks`: which tasks come with this package, and what some benchmarks need besides Python."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from typing import Annotated

import typer
import yaml

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.tasks import FOLDER

SUITE = "sparsemm_suite"
PAGE_METRICS = {"pages_qa": "exact_match", "pages_ocr": "character_accuracy"}
_PAGES = {
    "pages_qa": "value of a key on a held-out page: exact match",
    "pages_ocr": "transcription of a held-out page: character accuracy",
    "pages_qa_dev": "the same on other pages, to choose settings on",
    "pages_ocr_dev": "the same on other pages, to choose settings on",
    **{
        f"pages_many_{count}": f"value of a key on one of {count} pages in one prompt: exact match"
        for count in (2, 4, 8, 16)
    },
}


def suite_members() -> list[str]:
    """The tasks that make up `sparsemm_suite`."""
    return yaml.safe_load((FOLDER / "suite" / f"{SUITE}.yaml").read_text(encoding="utf-8"))["task"]


def check_needs(tasks: Iterable[str]) -> list[str]:
    """Check what tasks need on this machine before the hours of generation; the warnings that result.

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


def command(
    path: Annotated[bool, typer.Option("--path", help="Print the folder alone, for --include_path.")] = False,
) -> None:
    """List the tasks that come with this package."""
    if path:
        print(FOLDER)
        return
    meanings = {**_PAGES, SUITE: f"upstream's {', '.join(suite_members())}"}
    for name, meaning in meanings.items():
        print(f"{name:15} {meaning}")
    print('\nsparsemm eval finds them by itself; lmms-eval with --include_path "$(sparsemm tasks --path)"')
