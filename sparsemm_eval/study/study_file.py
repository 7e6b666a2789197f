"""Reading a study file: every key, type and range, and where the file has something else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, Field

from sparsemm_eval import checks, errors
from sparsemm_eval.checks import Count, Natural, checked
from sparsemm_eval.errors import ConfigError, nearest
from sparsemm_eval.methods.registry import methods
from sparsemm_eval.model.families.registry import ANY_FAMILY, families
from sparsemm_eval.model_wrappers.arguments import Arguments
from sparsemm_eval.study.method_knobs import elsewhere
from sparsemm_eval.study.settings import Model, Study, Wandb
from sparsemm_eval.study.wandb_runs import MODES
from sparsemm_eval.study.yaml_lines import Document, Place, Problem

MODEL_KEYS = ("name", "family", "pretrained")
_KEYS = tuple(name for name in Study.__dataclass_fields__ if name not in ("document", "task_places"))


def read(document: Document) -> tuple[Study, list[Problem]]:
    """The study of a document, without what is wrong in it, and what is wrong in it."""
    reader = _Reader(document)
    return reader.study(), reader.problems


def canonical(value: Any) -> Any:
    """5.0 -> 5: equal settings shall be written the same."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain(value: Any) -> Any:
    # lmms-eval cuts model_args at commas.
    if not isinstance(value, (str, int, float)) or "," in str(value):
        raise ValueError
    return canonical(value)


def _task_name(name: str) -> str:
    """A task's YAML file as seen from anywhere: cells may be started in another working directory."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.suffix in (".yaml", ".yml") and path.is_file() else name


def _task_folder(value: Any) -> str:
    folder = Path(str(value)).expanduser()
    if not folder.is_dir() or "," in str(folder):
        raise ValueError
    return str(folder.resolve())


def _text(pattern: str, meaning: str) -> Any:
    return Annotated[str, Field(pattern=pattern, description=meaning)]


_Name = _text(r"^[a-z0-9_-]+$", "a name of a-z, 0-9, _ and -")
_Label = _text(r"^[A-Za-z0-9._-]+$", "a name of letters, digits, ., _ and -")
_Output = _text(r"^[^,]*$", "a folder without a comma in its path")
_Checkpoint = _text(r"^[^,]*$", "a Hub id, a folder or a shipped reader's name, no comma")
_Task = Annotated[_text(r"^[^,]+$", "the name of a task (see: sparsemm tasks)"), AfterValidator(_task_name)]
_TaskFolder = Annotated[
    Any,
    AfterValidator(_task_folder),
    Field(description="one folder with YAML files of tasks, no comma in its path"),
]
_Argument = Annotated[
    Any, AfterValidator(_plain), Field(description="a number, a word or a path without a comma")
]


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
                self._refuse((str(key),), value, errors.one_of(key, _KEYS))

    def study(self) -> Study:
        name = self._take(("name",), self.values.get("name"), _Name) or "study"
        method = checks.one_of(*methods())
        tasks, places = self._tasks()
        return Study(
            name=name,
            output=Path(self._given("output", _Output) or f"runs/{name}").expanduser(),
            models=self._models(),
            methods=self._unique("methods", method, optional=bool(self.values.get("cells"))),
            budgets=self._unique("budgets", Count, optional=True),
            tasks=tasks,
            seeds=self._unique("seeds", Natural, optional=True) or (0,),
            knobs=self._knobs(),
            zip=self._zip(),
            exclude=self._mappings("exclude", method),
            cells=self._mappings("cells", method),
            include_path=self._given("include_path", _TaskFolder),
            limit=self._given("limit", Count),
            batch_size=self._given("batch_size", Count, 1),
            nproc=self._given("nproc", Count, 1),
            retries=self._given("retries", Natural, 1),
            wandb=self._wandb(),
            document=self.document,
            task_places=places,
        )

    def _models(self) -> tuple[Model, ...]:
        models: list[Model] = []
        for place, entry in self._entries("models", "models, each {name: …, family: …, pretrained: …}"):
            model = self._model(place, entry)
            if model is None:
                continue
            if model.label in {other.label for other in models}:
                self._refuse((*place, "name"), model.label, "a name that no other model has")
                continue
            models.append(model)
        return tuple(models)

    def _model(self, place: Place, entry: Any) -> Model | None:
        if not isinstance(entry, dict):
            self._refuse(place, entry, "a mapping {name: …, family: …, pretrained: …}")
            return None
        before = len(self.problems)
        label = self._take((*place, "name"), entry.get("name"), _Label)
        family = entry.get("family", ANY_FAMILY)
        family = self._take((*place, "family"), family, checks.one_of(*families(), ANY_FAMILY))
        pretrained = entry.get("pretrained")
        if pretrained is not None:
            pretrained = self._take((*place, "pretrained"), pretrained, _Checkpoint)
        elif family == ANY_FAMILY:
            self._refuse((*place, "pretrained"), None, "a checkpoint, from which the family follows")
        arguments = {
            key: self._take((*place, key), value, _Argument)
            for key, value in entry.items()
            if key not in MODEL_KEYS and self._is_argument((*place, str(key)), value)
        }
        usable = len(self.problems) == before
        return Model(label, family, pretrained, arguments, place) if usable else None

    def _tasks(self) -> tuple[tuple[tuple[str, ...], ...], dict[str, Place]]:
        """The tasks, and where each stands."""
        groups: list[tuple[str, ...]] = []
        places: dict[str, Place] = {}
        remedy = "names of tasks, or lists of those that share one process"
        for place, entry in self._entries("tasks", remedy):
            if entry == []:
                self._refuse(place, entry, "at least one task")
            names = []
            for inner, given in listed(place, entry):
                name = self._take(inner, given, _Task)
                if name in places:
                    self._refuse(inner, name, "every task once")
                elif name is not None:
                    places[name] = inner
                    names.append(name)
            if names:
                groups.append(tuple(names))
        return tuple(groups), places

    def _knobs(self) -> dict[str, tuple[Any, ...]]:
        value = self.values.get("knobs")
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._refuse(("knobs",), value, "a mapping of model_args to a value or a list of values")
            return {}
        knobs: dict[str, tuple[Any, ...]] = {}
        for name, given in value.items():
            place = ("knobs", str(name))
            if not self._is_argument(place, given) or given is None:
                continue
            if given == []:
                self._refuse(place, given, "at least one value")
            values = self._each(listed(place, given), _Argument)
            if values:
                knobs[str(name)] = values
        return knobs

    def _zip(self) -> tuple[tuple[str, ...], ...]:
        groups = []
        for place, entry in self._entries("zip"):
            names = entry if isinstance(entry, list) else [entry]
            lengths = {len(self._axis(str(name))) for name in names}
            if len(names) < 2 or len(lengths) > 1 or 0 in lengths:
                remedy = "two or more of budget, seed and the study's knobs, with lists of one length"
                self._refuse(place, entry, remedy)
            else:
                groups.append(tuple(names))
        return tuple(groups)

    def _axis(self, name: str) -> list[Any]:
        values = self.values.get({"budget": "budgets", "seed": "seeds"}.get(name, ""))
        if values is None:
            values = (self.values.get("knobs") or {}).get(name, [])
        return values if isinstance(values, list) else [values]

    def _mappings(self, key: str, method: Any) -> tuple[dict[str, Any], ...]:
        """Entries that name settings of cells."""
        found = []
        for place, entry in self._entries(key):
            if not isinstance(entry, dict) or not entry:
                self._refuse(place, entry, "a mapping of settings, for instance {method: NAME, budget: 32}")
            elif key == "cells" and "method" not in entry:
                self._refuse(place, entry, "a mapping with a method")
            elif "method" not in entry or self._take((*place, "method"), entry["method"], method):
                found.append({str(name): canonical(value) for name, value in entry.items()})
        return tuple(found)

    def _wandb(self) -> Wandb:
        value = self.values.get("wandb")
        kinds = {"mode": checks.one_of(*MODES), "project": str, "entity": str}
        if value is not None and not isinstance(value, dict):
            self._refuse(("wandb",), value, "a mapping with " + ", ".join(kinds))
        if not isinstance(value, dict):
            return Wandb()
        for key in value.keys() - kinds.keys():
            self._refuse(("wandb", str(key)), value[key], errors.one_of(key, kinds))
        given = {key: value[key] for key in kinds if value.get(key) is not None}
        taken = {key: self._take(("wandb", key), given[key], kinds[key]) for key in given}
        return Wandb(**{key: found for key, found in taken.items() if found is not None})

    def _is_argument(self, place: Place, value: Any) -> bool:
        """Whether a key names a model_arg that a study sets here; its range is the wrappers' to check."""
        name = place[-1]
        known = sorted({*Arguments.names()} - {*elsewhere(), *MODEL_KEYS})
        if name in known:
            return True
        where = {**dict.fromkeys(MODEL_KEYS, "it under models:"), **elsewhere()}.get(name)
        remedy = f"it elsewhere: {where}" if where else f"a model_arg: {errors.one_of(name, known)}"
        self._refuse(place, value, remedy)
        return False

    def _given(self, key: str, kind: Any, default: Any = None) -> Any:
        """The value of a key; the default where there is none, or a wrong one."""
        value = self.values.get(key)
        found = None if value is None else self._take((key,), value, kind)
        return default if found is None else found

    def _unique(self, key: str, kind: Any, optional: bool = False) -> tuple[Any, ...]:
        return self._each(self._entries(key, None if optional else "a list with at least one entry"), kind)

    def _entries(self, key: str, needed: str | None = None) -> list[tuple[Place, Any]]:
        """A list's entries with their places; ``needed`` says what they are where there must be some."""
        value = self.values.get(key)
        if value == [] or (value is None and needed):
            self._refuse((key,), value, needed or "a list with at least one entry")
        return [] if value is None else listed((key,), value)

    def _each(self, entries: list[tuple[Place, Any]], kind: Any) -> tuple[Any, ...]:
        """Values of a type, each once."""
        kept: list[Any] = []
        for place, given in entries:
            value = self._take(place, given, kind)
            if value in kept:
                self._refuse(place, value, "every value once")
            elif value is not None:
                kept.append(value)
        return tuple(kept)

    def _take(self, place: Place, value: Any, kind: Any) -> Any:
        """A value as its type has it; None where it is none of the type's, which becomes a problem."""
        try:
            return checked(kind, "", value)
        except ConfigError as error:
            names = get_args(kind) if get_origin(kind) is Literal else ()
            self._refuse(place, value, error.remedy + nearest(value, names))
            return None

    def _refuse(self, place: Place, value: Any, remedy: str) -> None:
        self.problems.append(self.document.problem(place, value, remedy))


def listed(place: Place, value: Any) -> list[tuple[Place, Any]]:
    """A list's entries with their places; one value stands for a list of one."""
    if isinstance(value, list):
        return [((*place, index), entry) for index, entry in enumerate(value)]
    return [(place, value)]
