"""What an lmms-eval command line asks for, and the same line with this package's tasks on its path."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.tasks import FOLDER

#: Where results go when the command line does not say.
DEFAULT_OUTPUT = "runs"


@dataclass(frozen=True)
class Run:
    """One evaluation of a command line; a configuration file may hold several.

    Attributes
    ----------
    model : str or None
        Name after ``--model``; None leaves it to lmms-eval.
    model_args : str
    tasks : tuple of str
        Names as given: tasks, groups, tags, patterns or YAML files.
    output_path : pathlib.Path
    """

    model: str | None
    model_args: str
    tasks: tuple[str, ...]
    output_path: Path


def read(arguments: Sequence[str]) -> list[Run]:
    """The evaluations that a command line asks for.

    Parameters
    ----------
    arguments : sequence of str
        As given to lmms-eval, ``--config`` included.

    Raises
    ------
    ConfigError
        If the tasks are missing, or the configuration file cannot be read.
    """
    given = _given(arguments)
    runs = []
    for entry in _entries(given):
        tasks = entry.get("tasks")
        names = tuple(name for name in str(tasks or "").split(",") if name)
        if not names:
            raise ConfigError("--tasks", tasks, "names of tasks, separated by commas (see: sparsemm tasks)")
        if entry.get("output_path") is None and given.config:
            raise ConfigError("--output_path", None, "a folder, here or in every entry of the --config file")
        runs.append(
            Run(
                entry.get("model"),
                str(entry.get("model_args") or ""),
                names,
                Path(entry.get("output_path") or DEFAULT_OUTPUT),
            )
        )
    return runs


def complete(arguments: Sequence[str], scratch: Path) -> list[str]:
    """The command line with this package's tasks on the include path, and an output path.

    lmms-eval takes one folder after ``--include_path``, but a list of them in a configuration file; one is
    written to `scratch` when the user has include paths of their own. All else stays as it is.

    Parameters
    ----------
    arguments : sequence of str
    scratch : pathlib.Path
        A folder that lives as long as the run.

    Returns
    -------
    list of str
    """
    given = _given(arguments)
    result = list(arguments)
    if given.output_path is None and not given.config:
        result += ["--output_path", DEFAULT_OUTPUT]
    entries = _entries(given)
    if not any(entry.get("include_path") for entry in entries):
        return [*result, "--include_path", str(FOLDER)]
    if given.config is None and Path(given.include_path).resolve() == FOLDER:
        return result
    _, rest = _parser("config", "include_path").parse_known_args(result)
    config = scratch / "lmms_eval.yaml"
    contents = [
        {**original, "include_path": _with_own(entry.get("include_path"))}
        for original, entry in zip(_file_entries(given), entries, strict=True)
    ]
    config.write_text(yaml.safe_dump(contents), encoding="utf-8")
    return [*rest, "--config", str(config)]


def _parser(*names: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    for name in names:
        parser.add_argument(f"--{name}")
    return parser


def _given(arguments: Sequence[str]) -> argparse.Namespace:
    names = ("model", "model_args", "tasks", "output_path", "include_path", "config")
    return _parser(*names).parse_known_args(list(arguments))[0]


def _file_entries(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Entries of the configuration file; one empty entry where there is no file."""
    if not given.config:
        return [{}]
    remedy = "a YAML file with lmms-eval's arguments"
    try:
        contents = yaml.safe_load(Path(given.config).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError("--config", given.config, f"{remedy}: {error}") from error
    entries = contents if isinstance(contents, list) else [contents]
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError("--config", given.config, remedy)
    return entries


def _entries(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Arguments of every evaluation; as in lmms-eval, the command line goes before the file."""
    explicit = {name: value for name, value in vars(given).items() if value is not None}
    return [{**entry, **explicit} for entry in _file_entries(given)]


def _with_own(paths: str | list[str] | None) -> list[str]:
    others = [paths] if isinstance(paths, str) else list(paths or [])
    return [str(FOLDER), *(path for path in others if Path(path).resolve() != FOLDER)]
