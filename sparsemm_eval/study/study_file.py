"""A study's settings: what its file says, before anything is crossed, and what is wrong in it."""

from __future__ import annotations

import os.path
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from sparsemm_eval import checks, errors
from sparsemm_eval.checks import Count, Natural, checked
from sparsemm_eval.errors import ConfigError, nearest
from sparsemm_eval.files import users_path
from sparsemm_eval.methods.registry import methods
from sparsemm_eval.model.families.registry import ANY_FAMILY, families
from sparsemm_eval.model_wrappers.arguments import Arguments
from sparsemm_eval.study.json_values import canonical
from sparsemm_eval.study.method_knobs import elsewhere
from sparsemm_eval.study.wandb_runs import MODES
from sparsemm_eval.study.yaml_lines import Document, Place, Problem

MODEL_KEYS = ("name", "family", "pretrained")
#: What an entry of cells: fixes beside knobs.
_CELL_KEYS = ("model", "method", "budget", "seed", "task")
#: Keys that a file must have, and what they are.
_NEEDED = {
    "name": "a name of a-z, 0-9, _ and -",
    "models": "models, each {name: …, family: …, pretrained: …}",
    "methods": "a list with at least one entry",
    "tasks": "names of tasks, or lists of those that share one process",
}
#: What stands under a key, where that is no mapping.
_MAPPINGS = {
    "models": "a mapping {name: …, family: …, pretrained: …}",
    "knobs": "a mapping of model_args to a value or a list of values",
    "exclude": "a mapping of settings, for instance {method: NAME, budget: 32}",
    "cells": "a mapping with a method, for instance {method: NAME, budget: 32}",
    "wandb": "a mapping with mode, project, entity",
}
#: What lmms-eval's arguments and one line can hold.
_SIGNS = r"^[^,\x00-\x1f]"
#: Place and value of a mistake, and what would be right.
_Mistake = tuple[Place, Any, str]


def listed(place: Place, value: Any) -> list[tuple[Place, Any]]:
    """A list's entries with their places; one value stands for a list of one."""
    if isinstance(value, list):
        return [((*place, index), entry) for index, entry in enumerate(value)]
    return [] if value is None else [(place, value)]


def _leaf(kind: Any) -> Any:
    """A type of `checks`, whose error says what would be right."""
    names = get_args(kind) if get_origin(kind) is Literal else ()

    def take(value: Any) -> Any:
        try:
            return checked(kind, "", value)
        except ConfigError as error:
            raise ValueError(error.remedy + nearest(value, names)) from error

    return Annotated[Any, PlainValidator(take)]


def _text(pattern: str, meaning: str) -> Any:
    return _leaf(Annotated[str, Field(pattern=pattern, description=meaning, strict=True)])


def _filled(value: Any) -> list[Any]:
    if value == []:
        raise ValueError("a list with at least one entry")
    return value if isinstance(value, list) else [value]


def _many(kind: Any) -> Any:
    """The type of lists with at least one entry; one value stands for a list of one."""
    return Annotated[tuple[kind, ...], BeforeValidator(_filled)]


def _plain(value: Any) -> Any:
    # lmms-eval cuts model_args at commas.
    if not isinstance(value, (str, int, float)) or {*",\n"} & {*str(value)}:
        raise ValueError("a number, a word or a path without a comma")
    return canonical(value)


def _task_name(name: Any) -> Any:
    """A task's YAML file as seen from anywhere: cells may be started in another working directory."""
    path = users_path(str(name))
    return str(path.resolve()) if path.suffix in (".yaml", ".yml") and os.path.isfile(path) else name


def _task_folder(value: Any) -> str:
    folder = users_path(value) if isinstance(value, str) else Path()
    if not isinstance(value, str) or not value or not os.path.isdir(folder) or "," in str(folder):
        raise ValueError("one folder with YAML files of tasks, no comma in its path")
    return str(folder.resolve())


def _settings(value: BaseModel) -> dict[str, Any]:
    found = {name: canonical(setting) for name, setting in value.model_dump(exclude_unset=True).items()}
    if not found:
        raise ValueError(_MAPPINGS["exclude"])
    return found


_Method = _leaf(checks.one_of(*methods()))
_Task = Annotated[
    _text(_SIGNS + "+$", "the name of a task (see: sparsemm tasks)"), AfterValidator(_task_name)
]
_Argument = Annotated[Any, PlainValidator(_plain)]
_Line = _text(r"^[^\x00-\x1f]+$", "a text on one line")


class _Excluded(BaseModel, extra="allow"):
    """Settings of cells by name."""

    method: _Method = None


class _Further(_Excluded):
    """The same with a method, and with values that model_args can have."""

    __pydantic_extra__: dict[str, _Argument]
    method: _Method
    model: Any = None
    budget: _leaf(Count) | None = None
    seed: _leaf(Natural) | None = None
    task: Any = None


class Model(BaseModel, frozen=True, extra="allow"):
    """One model of a study."""

    __pydantic_extra__: dict[str, _Argument]
    #: Its name in tables and figures.
    name: _text(r"^[A-Za-z0-9._-]+$", "a name of letters, digits, ., _ and -") = Field(
        None, validate_default=True
    )
    #: The first part of lmms-eval's model name.
    family: _leaf(checks.one_of(*families(), ANY_FAMILY)) = ANY_FAMILY
    #: None: the family's default checkpoint.
    pretrained: _text(_SIGNS + "+$", "a Hub id, a folder or a shipped reader's name, no comma") | None = (
        Field(None, validate_default=True)
    )

    @field_validator("pretrained", mode="before")
    @classmethod
    def _checkpoint(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.data.get("family") == ANY_FAMILY:
            raise ValueError("a checkpoint, from which the family follows")
        return value

    @property
    def arguments(self) -> dict[str, Any]:
        """Further model_args of this model; they go before the study's knobs."""
        return self.model_extra


class Wandb(BaseModel, frozen=True, extra="forbid"):
    """Where runs are logged to."""

    mode: _leaf(checks.one_of(*MODES)) = "disabled"
    project: _Line = "sparsemm-eval"
    entity: _Line | None = None


class Study(BaseModel, frozen=True, extra="forbid"):
    """A study file's contents, checked one by one; docs/studies.md says what each key means."""

    name: _text(r"^[a-z0-9_-]+$", _NEEDED["name"]) = "study"
    #: The study's folder.
    output: _text(_SIGNS + "*$", "a folder without a comma in its path") = Field("", validate_default=True)
    models: _many(Model) = ()
    methods: _many(_Method) = ()
    #: Nominal entries per KV head.
    budgets: _many(_leaf(Count)) = ()
    #: Every inner tuple shares one process.
    tasks: _many(_many(_Task)) = ()
    seeds: _many(_leaf(Natural)) = (0,)
    #: model_arg -> values that are crossed.
    knobs: dict[str, _many(_Argument)] = {}
    #: Names of knobs, or ``budget`` or ``seed``, whose values go together instead of being crossed.
    zip: _many(Any) = ()
    #: Cells that agree with all entries of one of these are left out.
    exclude: _many(Annotated[_Excluded, AfterValidator(_settings)]) = ()
    #: Further cells: a method, and what is fixed for it of model, budget, seed, task and knobs.
    cells: _many(Annotated[_Further, AfterValidator(_settings)]) = ()
    #: Folder of the user's own tasks.
    include_path: Annotated[str | None, PlainValidator(_task_folder)] = None
    #: Documents per task; None: all.
    limit: _leaf(Count) = None
    batch_size: _leaf(Count) = 1
    nproc: _leaf(Count) = 1
    retries: _leaf(Natural) = 1
    wandb: Wandb = Wandb()
    _document: Document = PrivateAttr(Document("study.yaml", {}, {}))

    @field_validator("output")
    @classmethod
    def _folder(cls, value: str, info: ValidationInfo) -> Path:
        return users_path(value or f"runs/{info.data.get('name', 'study')}")

    @property
    def document(self) -> Document:
        """Where all this was read."""
        return self._document

    @property
    def task_places(self) -> dict[str, Place]:
        """Where each task stands in the document."""
        names = [name for group in self.tasks for name in group]
        return {name: place for place, name in reversed(_tasks(self.document.values)) if name in names}

    def model(self, name: str) -> Model:
        """The model of a name."""
        return next(model for model in self.models if model.name == name)

    def place(self, model: str) -> Place:
        """Where the model of a name stands in the document."""
        return next(place[:-1] for place, name in _names(self.document.values) if name == model)

    def record(self) -> dict[str, Any]:
        """The settings as JSON types, for ``study.json``."""
        # entries of exclude: and cells: are plain mappings by now, which pydantic would warn of
        return self.model_dump(mode="json", exclude={"output"}, warnings=False)


def read(document: Document) -> tuple[Study, list[Problem]]:
    """The study of a document, without what is wrong in it, and what is wrong in it."""
    values = {key: deepcopy(value) for key, value in document.values.items() if value is not None}
    problems: list[Problem] = []
    found = list(_of_the_whole(values))
    while True:
        try:
            study = Study.model_validate(values)
        except ValidationError as error:
            found += [_mistake(document, one) for one in error.errors()]
        if not found:
            study._document = document
            return study, problems
        problems += [document.problem(*one) for one in found]
        # Inner values and later entries first: what is around or before them keeps its place.
        for place in sorted({_taken_with(values, place) for place, _, _ in found}, reverse=True):
            _take_out(values, place)
        found = []


def _of_the_whole(values: Mapping[str, Any]) -> Iterator[_Mistake]:
    """What is missing or there twice, no model_arg, and lists that do not go together."""
    for key, remedy in _NEEDED.items():
        if key not in values and not (key == "methods" and values.get("cells")):
            yield (key,), None, remedy
    knobs = values.get("knobs") if isinstance(values.get("knobs"), dict) else {}
    arguments = [(("knobs", name), value) for name, value in knobs.items()]
    for place, entry in listed(("models",), values.get("models")):
        own = entry if isinstance(entry, dict) else {}
        arguments += [((*place, name), value) for name, value in own.items() if name not in MODEL_KEYS]
    for place, entry in listed(("cells",), values.get("cells")):
        own = entry if isinstance(entry, dict) else {}
        arguments += [((*place, name), value) for name, value in own.items() if name not in _CELL_KEYS]
    yield from _unknown(arguments)
    lists = {(key,): values.get(key) for key in ("methods", "budgets", "seeds")}
    lists |= {("knobs", name): value for name, value in knobs.items()}
    for place, value in lists.items():
        yield from _repeated(listed(place, value), "every value once")
    yield from _repeated(_tasks(values), "every task once")
    yield from _repeated(_names(values), "a name that no other model has")
    zipped: list[Any] = []
    axes = {**knobs, "budget": values.get("budgets"), "seed": values.get("seeds")}
    for place, entry in listed(("zip",), values.get("zip")):
        names = entry if isinstance(entry, list) else [entry]
        lengths = {len(listed((), axes.get(str(name)))) for name in names}
        if len(names) < 2 or len(lengths) > 1 or 0 in lengths:
            remedy = "two or more of budget, seed and the study's knobs, with lists of one length"
            yield place, entry, remedy
        elif any(name in zipped for name in names) or len(set(names)) < len(names):
            yield place, entry, "every setting once"
        zipped += names


def _unknown(arguments: Iterable[tuple[Place, Any]]) -> Iterator[_Mistake]:
    """What a study does not set here; the range of a model_arg is the wrappers' to check."""
    known = sorted({*Arguments.names()} - {*elsewhere(), *MODEL_KEYS})
    others = {**dict.fromkeys(MODEL_KEYS, "models:"), **elsewhere()}
    for place, value in arguments:
        name = place[-1]
        if name in others:
            yield place, value, f"it elsewhere: {others[name]}"
        elif name not in known:
            yield place, value, f"a model_arg: {errors.one_of(name, known)}"


def _repeated(entries: Iterable[tuple[Place, Any]], remedy: str) -> Iterator[_Mistake]:
    known: set[str] = set()
    for place, value in entries:
        same = str(canonical(value))  # as lmms-eval's arguments have it
        if same in known:
            yield place, canonical(value), remedy
        known.add(same)


def _tasks(values: Mapping[str, Any]) -> list[tuple[Place, Any]]:
    groups = listed(("tasks",), values.get("tasks"))
    return [(inner, _task_name(name)) for place, entry in groups for inner, name in listed(place, entry)]


def _names(values: Mapping[str, Any]) -> list[tuple[Place, Any]]:
    models = listed(("models",), values.get("models"))
    return [
        ((*place, "name"), entry.get("name"))
        for place, entry in models
        if isinstance(entry, dict) and "name" in entry
    ]


def _mistake(document: Document, found: Mapping[str, Any]) -> _Mistake:
    """What an error of pydantic's says."""
    place: Place = ()
    for part in found["loc"]:
        # One value stands for a list of one.
        if isinstance(part, str) or (*place, part) in document.lines:
            place = (*place, part)
    if found["type"] == "extra_forbidden":
        known = Study if len(place) == 1 else Wandb
        return place, found["input"], errors.one_of(place[-1], known.model_fields)
    if found["type"] == "value_error":
        return place, found["input"], str(found["ctx"]["error"])
    place = place[:-1] if found["type"] == "missing" else place
    return place, found["input"], _MAPPINGS[place[0]]


def _taken_with(values: Mapping[str, Any], place: Place) -> Place:
    """What goes with a value that is wrong: of a model, or of an entry of settings, the whole."""
    if place[0] in ("models", "exclude", "cells"):
        return place[: 2 if isinstance(values.get(place[0]), list) else 1]
    return place


def _take_out(values: dict[str, Any], place: Place) -> None:
    """Take a value out; a list of which nothing is left is as good as not given."""
    *outer, last = place
    around: Any = values
    for part in outer:
        around = around[part]
    if isinstance(around, list):
        del around[last]
        if not around:
            _take_out(values, tuple(outer))
    else:
        around.pop(last, None)
