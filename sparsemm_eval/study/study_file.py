"""Reading a study file: every key, type and range, and where the file has something else."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sparsemm_eval.errors import one_of
from sparsemm_eval.methods.registry import methods
from sparsemm_eval.model.families.registry import ANY_FAMILY
from sparsemm_eval.study.method_knobs import elsewhere, family_names
from sparsemm_eval.study.settings import Model, Study, Wandb
from sparsemm_eval.study.wandb_runs import MODES
from sparsemm_eval.study.yaml_lines import Document, Place, Problem

MODEL_KEYS = ("name", "family", "pretrained")
_NAME = re.compile(r"[a-z0-9_-]+")
_LABEL = re.compile(r"[A-Za-z0-9._-]+")
_KEYS = ("output", *(name for name in Study.__dataclass_fields__ if name not in ("output", "document")))


def read(document: Document) -> tuple[Study, list[Problem]]:
    """The study of a document, without what is wrong in it, and what is wrong in it."""
    reader = _Reader(document)
    return reader.study(), reader.problems


class _Reader:
    def __init__(self, document: Document):
        self.document = document
        self.problems: list[Problem] = []
        self.values: dict[str, Any] = {}
        if not isinstance(document.values, dict):
            self._refuse((), document.values, "a mapping with name, models, methods, tasks …")
            return
        for key, value in document.values.items():
            if key in _KEYS:
                self.values[key] = value
            else:
                self._refuse((str(key),), value, one_of(key, _KEYS))

    def study(self) -> Study:
        name = self._name()
        return Study(
            name=name,
            output=self._output(name),
            models=self._models(),
            methods=self._unique(
                "methods",
                lambda place, value: self._choice(place, value, tuple(methods())),
                optional=bool(self.values.get("cells")),
            ),
            budgets=self._unique("budgets", lambda place, value: self._whole(place, value, 1), optional=True),
            tasks=self._tasks(),
            seeds=self._unique("seeds", lambda place, value: self._whole(place, value, 0), optional=True)
            or (0,),
            knobs=self._knobs(),
            zip=self._zip(),
            exclude=self._mappings("exclude"),
            cells=self._mappings("cells"),
            include_path=self._folder(),
            limit=self._number("limit", None, 1),
            batch_size=self._number("batch_size", 1, 1),
            nproc=self._number("nproc", 1, 1),
            retries=self._number("retries", 1, 0),
            wandb=self._wandb(),
            document=self.document,
        )

    def _refuse(self, place: Place, value: Any, remedy: str) -> None:
        self.problems.append(self.document.problem(place, value, remedy))

    def _name(self) -> str:
        value = self.values.get("name")
        if isinstance(value, str) and _NAME.fullmatch(value):
            return value
        self._refuse(("name",), value, "a name of a-z, 0-9, _ and -")
        return "study"

    def _output(self, name: str) -> Path:
        value = self.values.get("output") or f"runs/{name}"
        if not isinstance(value, str) or "," in value:
            self._refuse(("output",), value, "a folder without a comma in its path")
            return Path("runs") / name
        return Path(value).expanduser()

    def _models(self) -> tuple[Model, ...]:
        entries = self._list("models", "models, each {name: …, family: …, pretrained: …}")
        models: list[Model] = []
        for index, entry in entries:
            model = self._model(("models", index), entry)
            if model is None:
                continue
            if model.label in {other.label for other in models}:
                self._refuse(("models", index, "name"), model.label, "a name that no other model has")
                continue
            models.append(model)
        return tuple(models)

    def _model(self, place: Place, entry: Any) -> Model | None:
        if not isinstance(entry, dict):
            self._refuse(place, entry, "a mapping {name: …, family: …, pretrained: …}")
            return None
        found = len(self.problems)
        label, family = entry.get("name"), entry.get("family", ANY_FAMILY)
        pretrained = entry.get("pretrained")
        if not isinstance(label, str) or not _LABEL.fullmatch(label):
            self._refuse((*place, "name"), label, "a name of letters, digits, ., _ and -")
        if self._choice((*place, "family"), family, family_names()) and (family, pretrained) == (
            ANY_FAMILY,
            None,
        ):
            self._refuse((*place, "pretrained"), None, "a checkpoint, from which the family follows")
        if pretrained is not None and not self._is_plain(pretrained, str):
            self._refuse(
                (*place, "pretrained"), pretrained, "a Hub id, a folder or a shipped reader's name, no comma"
            )
        arguments = {str(key): value for key, value in entry.items() if key not in MODEL_KEYS}
        kept = {
            key: canonical(value)
            for key, value in arguments.items()
            if self._argument((*place, key), key, value) and value is not None
        }
        usable = len(self.problems) == found
        return Model(label, family, pretrained, kept, int(place[-1])) if usable else None

    def _tasks(self) -> tuple[tuple[str, ...], ...]:
        groups: list[tuple[str, ...]] = []
        seen: set[str] = set()
        for index, entry in self._list("tasks", "names of tasks, or lists of those that share one process"):
            if isinstance(entry, list):
                places = [(("tasks", index, inner), name) for inner, name in enumerate(entry)]
            else:
                places = [(("tasks", index), entry)]
            names = []
            for place, name in places:
                if not self._is_plain(name, str) or not name:
                    self._refuse(place, name, "the name of a task (see: sparsemm tasks)")
                elif name in seen:
                    self._refuse(place, name, "every task once")
                else:
                    seen.add(name)
                    names.append(_task_name(name))
            if isinstance(entry, list) and not entry:
                self._refuse(("tasks", index), entry, "at least one task")
            if names:
                groups.append(tuple(names))
        return tuple(groups)

    def _knobs(self) -> dict[str, tuple[Any, ...]]:
        value = self.values.get("knobs")
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._refuse(("knobs",), value, "a mapping of model_args to a value or a list of values")
            return {}
        knobs: dict[str, tuple[Any, ...]] = {}
        for key, given in value.items():
            name = str(key)
            if isinstance(given, list):
                checked = [
                    self._argument(("knobs", name, index), name, entry) for index, entry in enumerate(given)
                ]
                if not given:
                    self._refuse(("knobs", name), given, "at least one value")
                entries = [canonical(entry) for entry, fine in zip(given, checked, strict=True) if fine]
                for index, entry in enumerate(entries):
                    if entry in entries[:index]:
                        self._refuse(("knobs", name, index), entry, "every value once")
            else:
                fine = self._argument(("knobs", name), name, given)
                entries = [canonical(given)] if fine and given is not None else []
            if entries:
                knobs[name] = tuple(dict.fromkeys(entries))
        return knobs

    def _zip(self) -> tuple[tuple[str, ...], ...]:
        groups = []
        for index, entry in self._list("zip", "lists of names", optional=True):
            names = entry if isinstance(entry, list) else [entry]
            lengths = {len(self._axis(str(name))) for name in names}
            if len(names) < 2 or len(lengths) > 1 or 0 in lengths:
                remedy = "two or more of budget, seed and the study's knobs, with lists of one length"
                self._refuse(("zip", index), entry, remedy)
            else:
                groups.append(tuple(names))
        return tuple(groups)

    def _axis(self, name: str) -> list[Any]:
        values = self.values.get({"budget": "budgets", "seed": "seeds"}.get(name, ""))
        if values is None:
            values = (self.values.get("knobs") or {}).get(name, [])
        return values if isinstance(values, list) else [values]

    def _mappings(self, key: str) -> tuple[dict[str, Any], ...]:
        """Entries that name settings of cells."""
        found = []
        for index, entry in self._list(key, "a list of mappings", optional=True):
            place = (key, index)
            if not isinstance(entry, dict) or not entry:
                self._refuse(place, entry, "a mapping of settings, for instance {method: NAME, budget: 32}")
                continue
            if key == "cells" and "method" not in entry:
                self._refuse(place, entry, "a mapping with a method")
                continue
            if "method" in entry and not self._choice((*place, "method"), entry["method"], tuple(methods())):
                continue
            found.append({str(name): canonical(value) for name, value in entry.items()})
        return tuple(found)

    def _folder(self) -> str | None:
        value = self.values.get("include_path")
        if value is None:
            return None
        folder = Path(str(value)).expanduser()
        if not folder.is_dir() or "," in str(folder):
            self._refuse(
                ("include_path",), value, "one folder with YAML files of tasks, no comma in its path"
            )
        return str(folder.resolve())

    def _argument(self, place: Place, name: str, value: Any) -> bool:
        """Whether a value can be a model_arg of a study; ranges are the wrappers' to check."""
        if name in elsewhere() or name in MODEL_KEYS:
            where = elsewhere().get(name, "it under models:")
            self._refuse(place, value, f"it elsewhere: {where}")
            return False
        if value is None and len(place) < 3:
            return True
        if not self._is_plain(value, str, int, float, bool):
            self._refuse(place, value, "a number, a word or a path without a comma")
            return False
        return True

    def _wandb(self) -> Wandb:
        value = self.values.get("wandb")
        if value is None:
            return Wandb()
        keys = tuple(Wandb.__dataclass_fields__)
        if not isinstance(value, dict):
            self._refuse(("wandb",), value, "a mapping with " + ", ".join(keys))
            return Wandb()
        for key in value:
            if key not in keys:
                self._refuse(("wandb", str(key)), value[key], one_of(key, keys))
        chosen = {key: value[key] for key in keys if value.get(key) is not None}
        if not self._choice(("wandb", "mode"), chosen.get("mode", "disabled"), MODES):
            chosen.pop("mode")
        for key in ("project", "entity"):
            if not isinstance(chosen.get(key, ""), str):
                self._refuse(("wandb", key), chosen.pop(key), "text")
        return Wandb(**chosen)

    def _list(self, key: str, remedy: str, optional: bool = False) -> list[tuple[int, Any]]:
        """Entries with their positions; one value stands for a list of one."""
        value = self.values.get(key)
        if value is None and optional:
            return []
        if value is None or value == []:
            self._refuse((key,), value, remedy)
            return []
        return list(enumerate(value if isinstance(value, list) else [value]))

    def _unique(self, key: str, valid: Any, optional: bool = False) -> tuple[Any, ...]:
        kept: list[Any] = []
        for index, value in self._list(key, "a list with at least one entry", optional):
            place = (key, index) if isinstance(self.values[key], list) else (key,)
            if not valid(place, value):
                continue
            if value in kept:
                self._refuse(place, value, "every value once")
            else:
                kept.append(value)
        return tuple(kept)

    def _number(self, key: str, default: int | None, minimum: int) -> int | None:
        value = self.values.get(key)
        return default if value is None or not self._whole((key,), value, minimum) else value

    def _whole(self, place: Place, value: Any, minimum: int) -> bool:
        fine = isinstance(value, int) and not isinstance(value, bool) and value >= minimum
        if not fine:
            self._refuse(place, value, f"an integer >= {minimum}")
        return fine

    def _choice(self, place: Place, value: Any, choices: Collection[str]) -> bool:
        fine = isinstance(value, str) and value in choices
        if not fine:
            self._refuse(place, value, one_of(value, choices))
        return fine

    @staticmethod
    def _is_plain(value: Any, *types: type) -> bool:
        # lmms-eval cuts model_args and tasks at commas.
        return isinstance(value, types) and not (isinstance(value, str) and "," in value)


def _task_name(name: str) -> str:
    """A task's YAML file as seen from anywhere: cells may be started in another working directory."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.suffix in (".yaml", ".yml") and path.is_file() else name


def canonical(value: Any) -> Any:
    """5.0 -> 5: equal settings shall be written the same."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
