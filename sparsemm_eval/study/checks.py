"""The checks of a study against the wrappers, the head scores and the tasks; nothing is downloaded."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sparsemm_eval.errors import ConfigError, HeadScoreError, UnsupportedError, nearest, one_of
from sparsemm_eval.files import source_digest
from sparsemm_eval.methods.registry import method_named
from sparsemm_eval.model.families.registry import families
from sparsemm_eval.study import known_tasks, plan, study_file, yaml_lines
from sparsemm_eval.study.cell import Cell
from sparsemm_eval.study.method_knobs import elsewhere, needs_head_scores
from sparsemm_eval.study.plan import Facts
from sparsemm_eval.study.settings import Model, Study
from sparsemm_eval.study.yaml_lines import Problem, StudyError

#: Packages whose version may decide an answer.
_DECISIVE = ("torch", "transformers", "lmms-eval")
#: In place of head scores or weights that are not there; such a study is refused anyway.
_MISSING = "missing"


def load(path: Path) -> tuple[Study, list[Cell]]:
    """Read, cross and check a study file.

    Returns
    -------
    tuple
        The study, and its cells in the order in which they run.

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
    if not (given and Path(given).expanduser().is_file()):
        own = lookup.cache_folder() / lookup.file_name(name)
        if name not in lookup.shipped_names() and not own.is_file():
            for table in lookup.PUBLISHED:
                if table.is_of(name):
                    return f"git-blob:{table.git_blob}"
    found = Path(given).expanduser() if given and Path(given).expanduser().is_file() else given
    return f"sha256:{lookup.resolve(found, pretrained).digest()}"


def _checkpoint_key(pretrained: str) -> str:
    from sparsemm_eval.model.fingerprint import local_fingerprint

    try:
        found = local_fingerprint(pretrained)
    except ConfigError:
        # Weights that are missing: reported as a problem of the model.
        return f"{_MISSING}:{pretrained}"
    return pretrained if found is None else " ".join(found.values())


def _scores_key_or_missing(given: str | None, pretrained: str) -> str:
    try:
        return head_scores_key(given, pretrained)
    except (HeadScoreError, OSError):
        return f"{_MISSING}:{given or pretrained}"


def _of_cells(study: Study, cells: list[Cell]) -> Iterator[Problem]:
    yield from _of_names(study)
    for cell in cells:
        yield from _of_arguments(study, cell)
    asked = set()
    for cell in cells:
        key = (cell.pretrained, cell.model_args.get("head_scores"))
        if needs_head_scores(cell.method, cell.model_args.get("score")) and key not in asked:
            asked.add(key)
            yield from _of_head_scores(study, cell)
    for model in study.models:
        yield from _of_checkpoint(study, model)


def _of_names(study: Study) -> Iterator[Problem]:
    """Unknown model_args, once each and with all valid names that a study may set."""
    from sparsemm_eval.model_wrappers.arguments import Arguments

    valid = sorted(set(Arguments.names()) - set(elsewhere()) - {"pretrained"})
    places = [(("knobs", name), values) for name, values in study.knobs.items()]
    # Of all models as written: one with another mistake is not among the study's.
    for index, entry in enumerate(_entries(study, "models")):
        if isinstance(entry, dict):
            names = (name for name in entry if name not in (*study_file.MODEL_KEYS, *elsewhere()))
            places += [(("models", index, str(name)), entry[name]) for name in names]
    for place, value in places:
        if place[-1] not in valid:
            shown = list(value) if isinstance(value, tuple) else value
            yield study.document.problem(place, shown, f"a model_arg: {one_of(place[-1], valid)}")


def _of_arguments(study: Study, cell: Cell) -> Iterator[Problem]:
    """Types and ranges, as the wrappers themselves check them."""
    from sparsemm_eval.model_wrappers.arguments import Arguments

    method, family = method_named(cell.method), families().get(cell.family)
    known = Arguments.names()
    given = {name: value for name, value in cell.model_args.items() if name in known}
    while True:
        try:
            Arguments.parse(given, cell.model_name, family).compression(method)
            return
        except ConfigError as error:
            place = cell.sources.get(error.argument, ())
            yield study.document.problem(place, error.value, error.remedy)
            # Without it the others can be checked too; the wrappers stop at the first.
            if given.pop(error.argument, None) is None:
                return


def _of_head_scores(study: Study, cell: Cell) -> Iterator[Problem]:
    given = cell.model_args.get("head_scores")
    try:
        head_scores_key(given, cell.pretrained)
    except (HeadScoreError, OSError) as error:
        place = cell.sources.get("head_scores", cell.sources["pretrained"])
        yield study.document.problem(place, given or cell.pretrained, f"head scores: {error}")


def _of_checkpoint(study: Study, model: Model) -> Iterator[Problem]:
    from sparsemm_eval.model.fingerprint import local_fingerprint

    if model.pretrained is None:
        return
    place = ("models", model.position, "pretrained")
    try:
        found = local_fingerprint(model.pretrained)
    except ConfigError as error:
        yield study.document.problem(place, model.pretrained, error.remedy)
        return
    if found is None and model.pretrained.startswith(("/", "./", "../", "~")):
        yield study.document.problem(place, model.pretrained, "a folder that exists")


def _of_tasks(study: Study) -> Iterator[Problem]:
    from sparsemm_eval.lmms.tasks import check_needs

    places = {
        name: ("tasks", index, inner) if ("tasks", index, inner) in study.document.lines else ("tasks", index)
        for index, entry in enumerate(_task_entries(study))
        for inner, name in enumerate(entry)
    }
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


def _task_entries(study: Study) -> list[list[Any]]:
    wanted = {name for names in study.tasks for name in names}
    groups = [entry if isinstance(entry, list) else [entry] for entry in _entries(study, "tasks")]
    return [[name for name in group if isinstance(name, str) and name in wanted] for group in groups]


def _entries(study: Study, key: str) -> list[Any]:
    """A list of the file as it was written."""
    values = study.document.values
    given = values.get(key) if isinstance(values, dict) else None
    return given if isinstance(given, list) else [given]
