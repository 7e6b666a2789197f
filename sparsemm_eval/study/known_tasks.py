"""Which tasks there are: this package's and lmms-eval's, without loading any of them."""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.util
import json
import os.path
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.files import digest_of
from sparsemm_eval.tasks import FOLDER

_NAMED = re.compile(r"^(?:task|group|tag)\s*:\s*[\"']?([A-Za-z0-9._-]+)[\"']?\s*(?:#.*)?$", re.MULTILINE)
_ASK_LMMS_EVAL = """
import json, os, sys
from lmms_eval.tasks import TaskManager
for plugin in filter(None, os.environ.get("LMMS_EVAL_PLUGINS", "").split(",")):
    __import__(plugin)
names = TaskManager("ERROR", include_path=sys.argv[1:]).all_tasks
print("\\n" + json.dumps(list(names)))
"""
_PATIENCE = 300  # seconds; it imports all of lmms-eval


def missing(names: Iterable[str], include_path: str | None = None) -> tuple[list[str], list[str]]:
    """Names that no task, group, tag, pattern or YAML file stands behind, and all that are known.

    Looks through the YAML files, which takes a moment; lmms-eval itself, which takes several seconds, is
    asked only about what is not found there.

    Raises
    ------
    UnsupportedError
        If lmms-eval cannot be asked.
    """
    upstream = Path(importlib.util.find_spec("lmms_eval").origin).parent / "tasks"
    looks = (
        lambda: _named_below(_own_folders(include_path)),
        lambda: _named_below([upstream]),
        lambda: _of_lmms_eval(include_path),
    )
    unknown, known = list(names), set()
    for look in looks:
        if unknown:
            known |= set(look())
            unknown = [name for name in unknown if not _is_known(name, known)]
    return unknown, sorted(known)


def data_key(task: str, include_path: str | None = None) -> str:
    """Names what a task is made of: the YAML and Python files beside it and its local data, by content.

    The task's name alone where no YAML file of this package or of ``include_path`` has it: upstream's tasks
    are named by lmms-eval's version, and data of a hub cannot be looked into.
    """
    if os.path.isfile(task):
        return _content(Path(task).parent)
    for folder in _own_folders(include_path):
        for path in folder.rglob("*.yaml"):
            if task in _named_in(path):
                return _content(path.parent)
    return task


@cache
def _content(folder: Path) -> str:
    """Digest of a task's folder; files of more than 64 MiB count by size and time of change."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if "__pycache__" in path.parts:
            continue
        facts = path.stat()
        large = facts.st_size > 2**26
        found[str(path.relative_to(folder))] = (
            [facts.st_size, facts.st_mtime_ns] if large else hashlib.sha256(path.read_bytes()).hexdigest()
        )
    return digest_of(found)


def _own_folders(include_path: str | None) -> list[Path]:
    return [FOLDER, *([] if include_path is None else [Path(include_path)])]


def _is_known(name: str, known: set[str]) -> bool:
    if name in known or (name.endswith((".yaml", ".yml")) and os.path.isfile(name)):
        return True
    return any(sign in name for sign in "*?[") and bool(fnmatch.filter(known, name))


def _named_below(folders: Iterable[Path]) -> list[str]:
    paths = (path for folder in folders for path in folder.rglob("*.yaml"))
    return [name for path in paths for name in _named_in(path)]


def _named_in(path: Path) -> list[str]:
    return _NAMED.findall(path.read_text(encoding="utf-8", errors="replace"))


def _of_lmms_eval(include_path: str | None = None) -> list[str]:
    # In a process of its own: a runner that lives for days shall not hold all of lmms-eval in memory.
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK_LMMS_EVAL, *map(str, _own_folders(include_path))],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=True,
        )
        return json.loads(asked.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        raise UnsupportedError(f"lmms-eval cannot list its tasks: {detail.strip()[-500:]}") from error
