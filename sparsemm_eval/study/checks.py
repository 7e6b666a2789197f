"""The checks of a study against the wrappers, the head scores and the tasks; nothing is downloaded."""

from __future__ import annotations

import functools
import os.path
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from sparsemm_eval.errors import ConfigError, HeadScoreError, UnsupportedError, nearest
from sparsemm_eval.files import source_digest, users_path
from sparsemm_eval.methods.registry import method_named
from sparsemm_eval.model.families.registry import families
from sparsemm_eval.model_wrappers.arguments import Arguments
from sparsemm_eval.study import known_tasks, plan, study_file, yaml_lines
from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.method_knobs import seed_of
from sparsemm_eval.study.plan import Facts, absolute
from sparsemm_eval.study.study_file import Model, Study
from sparsemm_eval.study.yaml_lines import Place, Problem, StudyError

#: Packages whose version may decide an answer.
_DECISIVE = ("torch", "transformers", "lmms-eval")
#: In place of head scores or weights that are not there; such a study is refused anyway.
_MISSING = "missing: "


def load(path: Path) -> tuple[Study, list[Cell]]:
    """The study of a file, checked, and its cells in the order in which they run.

    Raises
    ------
    StudyError
        With every problem that was found.
    """
    document = yaml_lines.read(path)
    study, problems = study_file.read(document)
    cells, crossing = plan.cross(study, facts())
    problems += [*crossing, *_of_cells(study, cells), *_of_tasks(study)]
    if problems:
        raise StudyError(path, problems)
    return study, cells


def facts() -> Facts:
    """What the plan asks of the wrappers; each file is read once."""
    return Facts(
        lambda name: families()[name].default_checkpoint,
        functools.cache(_scores_key_or_missing),
        functools.cache(_checkpoint_key),
        known_tasks.data_key,
        {"code": source_digest(), **{name: version(name) for name in _DECISIVE}},
    )


def head_scores_key(given: str | None, pretrained: str) -> str:
    """What names the content of the head scores that a run would use.

    Raises
    ------
    HeadScoreError
        If there are none.
    """
    from sparsemm_eval.heads.scores import lookup

    name = given or pretrained
    file = users_path(given) if given and os.path.isfile(users_path(given)) else None
    if file is None:
        own = lookup.cache_folder() / lookup.file_name(name)
        if name not in lookup.shipped_names() and not own.is_file():
            for table in lookup.PUBLISHED:
                if table.is_of(name):
                    return f"git-blob:{table.git_blob}"
    return f"sha256:{lookup.resolve(file or given, pretrained).digest()}"


def _checkpoint_key(pretrained: str) -> str:
    from sparsemm_eval.model.fingerprint import local_fingerprint

    try:
        found = local_fingerprint(pretrained)
    except ConfigError:
        # Weights that are missing: reported as a problem of the model.
        return f"{_MISSING}{pretrained}"
    return pretrained if found is None else " ".join(found.values())


def _scores_key_or_missing(given: str | None, pretrained: str) -> str:
    try:
        return head_scores_key(given, pretrained)
    except (HeadScoreError, OSError) as error:
        return f"{_MISSING}{error}"


def _of_cells(study: Study, cells: list[Cell]) -> Iterator[Problem]:
    for cell in cells:
        yield from _of_arguments(study, cell)
        problem = str(cell.identity["head_scores"])
        if problem.startswith(_MISSING):
            given = cell.model_args.get("head_scores")
            place = _place(study, cell, "pretrained" if given is None else "head_scores")
            remedy = f"head scores: {problem.removeprefix(_MISSING)}"
            yield study.document.problem(place, given or cell.pretrained, remedy)
    for model in study.models:
        yield from _of_checkpoint(study, model)


def _of_arguments(study: Study, cell: Cell) -> Iterator[Problem]:
    """Types and ranges, as the wrappers themselves check them."""
    method, family = method_named(cell.method), families().get(cell.family)
    given = dict(cell.model_args)
    while True:
        try:
            Arguments.parse(given, cell.model_name, family).compression(method)
            return
        except ConfigError as error:
            yield study.document.problem(_place(study, cell, error.argument), error.value, error.remedy)
            # Without it the others can be checked too; the wrappers stop at the first.
            if given.pop(error.argument, None) is None:
                return


def _place(study: Study, cell: Cell, name: str) -> Place:
    """Where the file sets a cell's model_arg."""
    model = study.model(cell.model)
    if name == "pretrained" or name in model.arguments:
        return (*study.place(model.name), name)
    value = cell.model_args.get(name)
    own = {"budget": ("budgets",), seed_of(cell.method, cell.model_args.get("score")): ("seeds",)}
    place = own.get(name, ("knobs", name))
    for listed, given in study_file.listed(place, study.document.written(place)):
        # True is equal to 1, and no number.
        if absolute(name, given) == value and isinstance(given, bool) == isinstance(value, bool):
            return listed
    further = (("cells", index, name) for index, entry in enumerate(study.cells) if entry.get(name) == value)
    return next(further, place)


def _of_checkpoint(study: Study, model: Model) -> Iterator[Problem]:
    from sparsemm_eval.model.fingerprint import local_fingerprint

    if model.pretrained is None:
        return
    place = (*study.place(model.name), "pretrained")
    try:
        found = local_fingerprint(model.pretrained)
    except ConfigError as error:
        yield study.document.problem(place, model.pretrained, error.remedy)
        return
    if found is None and model.pretrained.startswith(("/", "./", "../", "~")):
        yield study.document.problem(place, model.pretrained, "a folder that exists")


def _of_tasks(study: Study) -> Iterator[Problem]:
    from sparsemm_eval.lmms.tasks import check_needs

    places = study.task_places
    unknown, known = known_tasks.missing(places, study.include_path)
    for name in unknown:
        yield study.document.problem(
            places[name], name, f"a task of lmms-eval or of this package{nearest(name, known)}"
        )
    for name, place in places.items():
        try:
            check_needs([name])
        except UnsupportedError as error:
            yield study.document.problem(place, name, str(error))
