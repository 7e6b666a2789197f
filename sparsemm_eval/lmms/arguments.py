"""What an lmms-eval command line asks for, and the same line with this package's tasks on its path."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import expanduser
from pathlib import Path
from typing import Any

import yaml

from sparsemm_eval.errors import ConfigError, reason_of
from sparsemm_eval.tasks import FOLDER

#: Where results go when the command line does not say.
DEFAULT_OUTPUT = "runs"
_HOME = re.compile(r"(--\w+=)?(~.*)")
_NAMES = ("model", "model_args", "tasks", "output_path", "include_path", "config", "device")


@dataclass(frozen=True)
class Run:
    """One evaluation of a command line; a configuration file may hold several."""

    model: str | None  # None leaves it to lmms-eval
    model_args: str
    tasks: tuple[str, ...]  # tasks, groups, tags or patterns; a YAML file by the name it gives its task
    output_path: Path


def read(arguments: Sequence[str]) -> list[Run]:
    """The evaluations that a command line of lmms-eval asks for, ``--config`` included.

    Raises
    ------
    ConfigError
        If the tasks are missing or files, or the configuration file cannot be read.
    """
    given, _ = _parse(arguments)
    explicit = {name: value for name, value in vars(given).items() if value is not None}
    runs = []
    for entry in _entries(given):
        entry = {**entry, **explicit}  # as in lmms-eval, the command line goes before the file
        tasks = entry.get("tasks")
        names = tuple(_task_at(name)[0] for name in str(tasks or "").split(",") if name)
        if not names:
            raise ConfigError("--tasks", tasks, "names of tasks, separated by commas (see: sparsemm tasks)")
        for name in names:
            if name.endswith((".yaml", ".yml")):
                raise ConfigError("--tasks", name, "the name of a task, or a task's YAML file that exists")
        if entry.get("output_path") is None and given.config:
            raise ConfigError("--output_path", None, "a folder, here or in every entry of the --config file")
        output = Path(entry.get("output_path") or DEFAULT_OUTPUT)
        runs.append(Run(entry.get("model"), str(entry.get("model_args") or ""), names, output))
    return runs


def command_line(model: str, model_args: Mapping[str, Any], **options: Any) -> list[str]:
    """lmms-eval's arguments of one evaluation; whatever is None is left out.

    Raises
    ------
    ConfigError
        For a model_arg with a comma, for instance in a path.
    """
    for name, value in model_args.items():
        if "," in str(value):
            raise ConfigError(name, str(value), "no comma, which separates lmms-eval's model_args")
    known = [f"{name}={value}" for name, value in model_args.items() if value is not None]
    given = {"model": model, "model_args": ",".join(known), **options}
    return [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]


def complete(arguments: Sequence[str], scratch: Path) -> list[str]:
    """The command line with all folders of tasks on the include path, and an output path.

    These are this package's, the user's, those of YAML files given as tasks (which lmms-eval does not find
    itself), and those of the modules in LMMS_EVAL_PLUGINS. lmms-eval takes one folder after
    ``--include_path``, but a list of them in a configuration file; one is written to `scratch`, a folder that
    lives as long as the run, where there are several, or a configuration file of the user's own. A ``~`` at
    the beginning of a value becomes the user's home. All else stays as it is.
    """
    result = [_at_home(argument) for argument in arguments]
    given, _ = _parse(arguments)
    if given.output_path is None and not given.config:
        result += ["--output_path", DEFAULT_OUTPUT]
    entries = _entries(given)
    several, dropped = given.config is not None, ["config", "include_path"]
    for entry in entries:
        asked = str(given.tasks or entry.get("tasks") or "").split(",")
        names, places = zip(*map(_task_at, asked), strict=True)
        if list(names) != asked:
            entry["tasks"] = ",".join(names)
            dropped.append("tasks")
        others = given.include_path or entry.get("include_path") or []
        others = [others] if isinstance(others, str) else others
        folders = [expanduser(folder) for folder in (*others, *filter(None, places), *_plugin_tasks())]
        entry["include_path"] = [str(FOLDER), *(one for one in folders if Path(one).resolve() != FOLDER)]
        several |= len(entry["include_path"]) > 1
    if not several:
        _, rest = _parse(result, ("include_path",))
        return [*rest, "--include_path", str(FOLDER)]
    config = scratch / "lmms_eval.yaml"
    config.write_text(yaml.safe_dump(entries), encoding="utf-8")
    _, rest = _parse(result, dropped)
    return [*rest, "--config", str(config)]


def task_name(name: str) -> str:
    """The name that results have for a task: of a YAML file, that of its task."""
    return _task_at(name)[0]


def _task_at(name: str) -> tuple[str, str | None]:
    """A task's name, and the folder to find it in where the name is that of a YAML file."""
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return name, None
    found = re.search(r"^task\s*:\s*[\"']?([\w.-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ConfigError("--tasks", name, "a YAML file that names its task: task: …")
    return found[1], str(path.parent)


def _plugin_tasks() -> list[str]:
    """Folders of tasks of LMMS_EVAL_PLUGINS, which lmms-eval reads too late to find tasks by name."""
    found = []
    for plugin in filter(None, os.environ.get("LMMS_EVAL_PLUGINS", "").split(",")):
        # lmms-eval itself says so where there is none.
        with contextlib.suppress(ModuleNotFoundError):
            package = importlib.util.find_spec(f"{plugin}.tasks")
            found += [] if package is None else list(package.submodule_search_locations or ())
    return found


def runs_on_cpu(arguments: Sequence[str]) -> bool:
    """Whether ``--device`` or the model_args name the CPU."""
    given, _ = _parse(arguments)
    named = (f"device={given.device}", *(given.model_args or "").split(","))
    return any(part.startswith("device=cpu") for part in named)


def _parse(arguments: Sequence[str], names: Sequence[str] = _NAMES) -> tuple[argparse.Namespace, list[str]]:
    """The options of these names, and all other arguments."""
    parser = argparse.ArgumentParser(add_help=False)
    for name in names:
        parser.add_argument(f"--{name}")
    return parser.parse_known_args([_at_home(argument) for argument in arguments])


def _at_home(argument: str) -> str:
    found = _HOME.fullmatch(argument)
    return (found[1] or "") + expanduser(found[2]) if found else argument


def _entries(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Entries of the configuration file; one empty entry where there is no file."""
    if not given.config:
        return [{}]
    remedy = "a YAML file with lmms-eval's arguments"
    try:
        contents = yaml.safe_load(Path(given.config).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError("--config", given.config, f"{remedy} ({reason_of(error)})") from error
    entries = contents if isinstance(contents, list) else [contents]
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError("--config", given.config, remedy)
    for entry in entries:
        if isinstance(entry.get("output_path"), str):
            entry["output_path"] = expanduser(entry["output_path"])
    return entries
