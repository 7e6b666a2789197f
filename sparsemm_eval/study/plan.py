"""The cells of a study: what is crossed with what, and the hash of everything a cell's result depends on."""

from __future__ import annotations

import itertools
import os.path
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sparsemm_eval.checks import checked
from sparsemm_eval.errors import ConfigError, one_of
from sparsemm_eval.files import digest_of, users_path
from sparsemm_eval.methods.base import Knob
from sparsemm_eval.methods.registry import method_named, methods
from sparsemm_eval.pruning.registry import SETTING
from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.method_knobs import (
    REFERENCE,
    is_reference,
    knobs_of,
    needs_head_scores,
    seed_of,
    takes_part,
)
from sparsemm_eval.study.study_file import Model, Study
from sparsemm_eval.study.yaml_lines import Place, Problem

_SLUG = 100  # characters of an id before its hash; with it, far below what file systems take
_PATHS = ("pretrained", "head_scores", "system_prompt", "redundancy")


@dataclass(frozen=True)
class Facts:
    """What the plan must know of the wrappers; a parameter, so that crossing needs no heavy imports."""

    default_checkpoint: Callable[[str], str]  # of a family
    #: (head_scores argument or None, pretrained) -> what names the content that would be used
    head_scores_key: Callable[[str | None, str], str]
    #: pretrained -> what names the weights; the name itself where only the Hub has them
    checkpoint_key: Callable[[str], str]
    #: (task, include_path) -> what names its files and local data; its name where only the Hub has them
    data_key: Callable[[str, str | None], str]
    surroundings: Mapping[str, str]  # code and versions that every cell runs with


def cross(study: Study, facts: Facts) -> tuple[list[Cell], list[Problem]]:
    """All cells, FullKV first, and what is wrong with the crossing itself.

    A setting is dropped where the method does not use it; what no method uses, entries without an effect, and
    cells that would be the same run, are problems.
    """
    cells: list[Cell] = []
    every: list[Cell] = []
    problems: list[Problem] = []
    seen: dict[str, Cell] = {}
    idle = set(range(len(study.exclude)))  # exclusions that no cell has agreed with
    for part, place in _parts(study):
        found = [
            _cell(part, model, tasks, method, draw, facts)
            for model, tasks, method in itertools.product(part.models, part.tasks, part.methods)
            for draw in _draws(part, model, method)
        ]
        every += found
        if place:
            problems += _idle_settings(study, place, found)
        for cell in found:
            excluding = {index for index, entry in enumerate(study.exclude) if _agrees(cell, entry)}
            idle -= excluding
            if excluding:
                continue
            twin = seen.setdefault(cell.hash, cell)
            if twin is cell:
                cells.append(cell)
            else:
                remedy = f"no two equal cells; it is the same as {twin.id}"
                where = place or study.place(cell.model)
                problems.append(study.document.problem(where, cell.id, remedy))
    problems += _unused(study, every)
    problems += [
        study.document.problem(
            ("exclude", index), study.exclude[index], "settings of at least one cell, by their names"
        )
        for index in sorted(idle)
    ]
    if every and not cells and not problems:
        remedy = "entries that leave a cell to run"
        problems.append(study.document.problem(("exclude",), list(study.exclude), remedy))
    cells.sort(key=lambda cell: not is_reference(cell.method, cell.model_args))
    return cells, problems


def _parts(study: Study) -> Iterator[tuple[Study, Place]]:
    """The grid itself, and the grids of the further cells: they fix some of its axes."""
    yield study, ()
    for index, entry in enumerate(study.cells):
        fixed = dict(entry)
        models = [model for model in study.models if model.name == fixed.get("model", model.name)]
        tasks = [names for names in study.tasks if fixed.get("task", names[0]) in names]
        method, budget, seed = fixed.pop("method"), fixed.pop("budget", None), fixed.pop("seed", None)
        knobs = {name: (value,) for name, value in fixed.items() if name not in ("model", "task")}
        changes = {
            "models": tuple(models),
            "tasks": tuple(tasks),
            "methods": (method,),
            "budgets": study.budgets if budget is None else (budget,),
            "seeds": study.seeds if seed is None else (seed,),
            "knobs": {**study.knobs, **knobs},
        }
        yield study.model_copy(update=changes), ("cells", index)


def _idle_settings(study: Study, place: Place, found: Sequence[Cell]) -> Iterator[Problem]:
    """Settings of a further cell that none of its cells has."""
    entry = study.cells[place[1]]
    known = {"model": [model.name for model in study.models], "task": list(study.task_places)}
    used = {name for cell in found for name in cell.model_args} | {"method", SETTING}
    unbudgeted = study.document.values.get("budgets") is None and entry.get("budget") is None
    if unbudgeted and method_named(entry["method"]).evicts:
        yield study.document.problem(place, dict(entry), "budget: here, or budgets: in the study")
    used |= {"seed"} if any(cell.seed is not None for cell in found) else set()
    for name, value in entry.items():
        if name in known and value not in known[name]:
            yield study.document.problem((*place, name), value, one_of(value, known[name]))
        elif found and name not in {*used, *known}:
            remedy = f"no such setting: {entry['method']} does not use it"
            yield study.document.problem((*place, name), value, remedy)


def _agrees(cell: Cell, entry: Mapping[str, Any]) -> bool:
    """Whether a cell is one of those that an entry of ``exclude`` means."""
    known = {"budget": None, **cell.model_args}
    known |= {"model": cell.model, "method": cell.method, "seed": cell.seed}
    return all(
        value in cell.tasks if name == "task" else name in known and known[name] == value
        for name, value in entry.items()
    )


def _draws(study: Study, model: Model, method: str) -> Iterator[dict[str, Any]]:
    """Settings of one model and method by argument."""
    given = {**study.knobs, **{name: (value,) for name, value in model.arguments.items()}}
    # which knobs take part depends on score and pruner, so each of these is crossed by itself
    scores = given.pop("score", ()) if takes_part("score", method, model.family) else ()
    prunes = given.pop(SETTING, ())
    for score, prune in itertools.product(scores or [None], prunes or [None]):
        prune = None if prune == "none" else prune
        user = (method, model.family, score, prune)
        axes = {name: values for name, values in given.items() if takes_part(name, *user)}
        axes |= {} if score is None else {"score": (score,)}
        axes |= {} if prune is None else {SETTING: (prune,)}
        if method_named(method).evicts:
            axes = {"budget": study.budgets, **axes}
        seed = seed_of(method, score)
        if seed is not None:
            axes[seed] = study.seeds
        for combination in itertools.product(*_together(axes, study.zip, seed)):
            found = {key: value for part in combination for key, value in part.items()}
            yield {key: found[key] for key in axes}


def _together(
    axes: Mapping[str, Sequence[Any]], groups: tuple[tuple[str, ...], ...], seed: str | None
) -> list[list[dict[str, Any]]]:
    """Axes as steps of one or more settings: those of a group are stepped through together."""
    left, steps = dict(axes), []
    for group in groups:
        names = [seed if name == "seed" else name for name in group]
        names = [name for name in names if name in left and len(left[name]) > 1]
        if len(names) > 1:
            columns = [left.pop(name) for name in names]
            # Not strict: of lists that go together, one may have lost a value that was refused.
            steps.append([dict(zip(names, row, strict=True)) for row in zip(*columns, strict=False)])
    return [*steps, *([{name: value} for value in values] for name, values in left.items())]


def _cell(
    study: Study,
    model: Model,
    tasks: tuple[str, ...],
    method: str,
    draw: Mapping[str, Any],
    facts: Facts,
) -> Cell:
    pretrained = model.pretrained or facts.default_checkpoint(model.family)
    arguments = {"pretrained": pretrained, **draw}
    budget = arguments.get("budget")
    seed_name = seed_of(method, arguments.get("score"))
    scores = (
        facts.head_scores_key(arguments.get("head_scores"), pretrained)
        if needs_head_scores(method, arguments.get("score"))
        else None
    )
    settings = {
        "model_name": f"{model.family}_{method}",
        **arguments,
        "tasks": list(tasks),
        "limit": study.limit,
        "batch_size": study.batch_size,
    }
    identity = {
        **settings,
        **_contents(knobs_of(method, arguments.get("score")), arguments),
        "weights": facts.checkpoint_key(pretrained),
        "head_scores": scores,
        **{f"data of {task}": facts.data_key(task, study.include_path) for task in tasks},
        **facts.surroundings,
    }
    comparison = {
        name: value
        for name, value in arguments.items()
        if takes_part(name, REFERENCE, model.family) and name not in ("budget", SETTING)
    }
    return Cell(
        id=_identifier(model.name, method, budget, tasks, digest_of(settings)),
        study=study.name,
        model=model.name,
        family=model.family,
        method=method,
        pretrained=pretrained,
        budget=budget,
        seed=arguments[seed_name] if seed_name else None,
        tasks=tasks,
        knobs={name: arguments[name] for name in study.knobs if name in arguments},
        model_args={name: absolute(name, value) for name, value in arguments.items()},
        limit=study.limit,
        batch_size=study.batch_size,
        nproc=study.nproc,
        include_path=study.include_path,
        identity=identity,
        hash=digest_of(identity),
        comparison={**comparison, "weights": identity["weights"]},
    )


def _contents(knobs: Mapping[str, Knob], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Knobs that are given as text, as their method takes them: of a file, what stands in it."""
    found = {}
    for name in knobs.keys() & arguments.keys():
        if isinstance(arguments[name], str):
            with suppress(ConfigError):  # which the wrapper's check names
                found[name] = checked(knobs[name].kind, name, arguments[name])
    return found


def _identifier(model: str, method: str, budget: int | None, tasks: tuple[str, ...], digest: str) -> str:
    parts = [model, method, *([] if budget is None else [f"b{budget}"]), "+".join(tasks)]
    slug = re.sub(r"[^A-Za-z0-9._+-]+", "_", "-".join(parts))
    return f"{slug[:_SLUG]}-{digest[:8]}"


def _unused(study: Study, cells: Sequence[Cell]) -> Iterator[Problem]:
    """Settings that no cell has: the user expects an effect that there is not."""
    document = study.document
    evicting = [index for index, name in enumerate(study.methods) if method_named(name).evicts]
    if evicting and not study.budgets:
        if document.values.get("budgets") is None:
            remedy = "budgets: in the study, which it needs"
            yield document.problem(("methods", evicting[0]), study.methods[evicting[0]], remedy)
        return
    if not cells:
        return
    if study.budgets and all(cell.budget is None for cell in cells):
        yield document.problem(("budgets",), list(study.budgets), "no budgets: no method here has one")
    if study.seeds != (0,) and all(cell.seed is None for cell in cells):
        drawing = " and ".join(name for name in methods() if seed_of(name))
        remedy = f"no seeds: no method here draws ({drawing} do)"
        yield document.problem(("seeds",), list(study.seeds), remedy)
    remedy = "a knob that a method of this study uses"
    used = {(cell.model, name) for cell in cells for name in cell.model_args}
    for name, values in study.knobs.items():
        if name != SETTING and not any((model.name, name) in used for model in study.models):
            yield document.problem(("knobs", name), list(values), remedy)
    for model in study.models:
        for name, value in model.arguments.items():
            if name != SETTING and (model.name, name) not in used:
                yield document.problem((*study.place(model.name), name), value, remedy)


def absolute(name: str, value: Any) -> Any:
    """Paths as seen from anywhere: cells may be started in another working directory."""
    if name not in _PATHS or not isinstance(value, str):
        return value
    if name == "pretrained" and "/" not in value:
        return value
    path = users_path(value)
    return str(path.resolve()) if os.path.exists(path) else value
