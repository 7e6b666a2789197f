"""Which tasks there are: this package's and lmms-eval's, without loading any of them."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.tasks import FOLDER

_NAMED = re.compile(r"^(?:task|group|tag)\s*:\s*[\"']?([A-Za-z0-9._-]+)[\"']?\s*(?:#.*)?$", re.MULTILINE)
_ASK_LMMS_EVAL = """
import json, sys
from lmms_eval.tasks import TaskManager
names = TaskManager("ERROR", include_path=sys.argv[1]).all_tasks
print("\\n" + json.dumps(list(names)))
"""
_PATIENCE = 300  # seconds; it imports all of lmms-eval


def missing(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names that no task, group, tag, pattern or YAML file stands behind, and all that are known.

    Looks through the YAML files, which takes a moment; lmms-eval itself, which takes several seconds, is
    asked only about what is not found there.

    Raises
    ------
    UnsupportedError
        If lmms-eval cannot be asked.
    """
    wanted = list(names)
    known = set(_in_files(FOLDER))
    unknown = _without(wanted, known)
    if unknown:
        known |= set(_in_files(_upstream()))
        unknown = _without(unknown, known)
    if unknown:
        known |= set(_of_lmms_eval())
        unknown = _without(unknown, known)
    return unknown, sorted(known)


def _without(names: list[str], known: set[str]) -> list[str]:
    return [name for name in names if not _is_known(name, known)]


def _is_known(name: str, known: set[str]) -> bool:
    if name in known or (name.endswith((".yaml", ".yml")) and Path(name).is_file()):
        return True
    return any(sign in name for sign in "*?[") and bool(fnmatch.filter(known, name))


def _in_files(folder: Path) -> Iterable[str]:
    for path in folder.rglob("*.yaml"):
        yield from _NAMED.findall(path.read_text(encoding="utf-8", errors="replace"))


def _upstream() -> Path:
    found = importlib.util.find_spec("lmms_eval")
    if found is None or found.origin is None:
        raise UnsupportedError("lmms-eval is not installed: pip install lmms-eval")
    return Path(found.origin).parent / "tasks"


def _of_lmms_eval() -> list[str]:
    # In a process of its own: a runner that lives for days shall not hold all of lmms-eval in memory.
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK_LMMS_EVAL, str(FOLDER)],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=True,
        )
        return json.loads(asked.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        raise UnsupportedError(f"lmms-eval cannot list its tasks: {detail.strip()[-500:]}") from error
