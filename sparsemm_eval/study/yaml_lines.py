"""YAML with line numbers, and what is wrong with a study file: every problem with its line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sparsemm_eval.errors import UsageError

#: Keys and positions from the root of a document to a value.
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that cannot work."""

    line: int  # in the study file, from 1
    key: str  # where it stands, for instance ``methods[2]``
    value: str  # as text
    remedy: str  # what would be right

    def text(self, file: str) -> str:
        """One line, as compilers write them."""
        return f"{file}:{self.line}: {self.key}: {self.value} is not valid: expected {self.remedy}"


class StudyError(UsageError, ValueError):
    """A study file that cannot be run, with all of its problems."""

    def __init__(self, file: str | Path, problems: Iterable[Problem]):
        unique = {(problem.line, problem.key, problem.remedy): problem for problem in problems}
        self.file = str(file)
        self.problems = sorted(unique.values(), key=lambda problem: (problem.line, problem.key))
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''} in {file}; nothing was started"
        super().__init__("\n".join([head, *(f"  {problem.text(self.file)}" for problem in self.problems)]))


class _Loader(yaml.SafeLoader):
    """The safe loader, whose errors all have a line: 2024-13-01 is none of Python's dates."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            kind = node.tag.rpartition(":")[2]
            reason = f"{'an' if kind == 'int' else 'a'} {kind} that can be read"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark) from error


@dataclass(frozen=True)
class Document:
    """A YAML document."""

    file: str  # its name, for messages
    values: dict[str, Any]  # as ``yaml.safe_load`` gives them, keys as texts
    #: Line, from 1, by place: of the key in a mapping, of the entry in a list.
    lines: dict[Place, int] = field(repr=False)

    def line(self, place: Place) -> int:
        """Line of a place, or of the nearest thing around it that was written down."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def written(self, place: Place) -> Any:
        """The value at a place; None where there is none."""
        value = self.values
        for part in place:
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def problem(self, place: Place, value: Any, remedy: str) -> Problem:
        """A problem at a place."""
        return Problem(self.line(place), key_text(place), repr(value), remedy)


def key_text(place: Place) -> str:
    """``("models", 0, "name")`` -> ``models[0].name``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".") or "the file"


def read(path: Path) -> Document:
    """Read a file.

    Raises
    ------
    StudyError
        If it cannot be read, is not YAML, or gives a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(path, 1, repr(str(path)), f"a readable YAML file: {error}") from error
    return parse(text, str(path))


def parse(text: str, file: str = "study.yaml") -> Document:
    """Read a text; see `read`."""
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.AliasEvent):
                # A few of them can stand for more values than fit into memory, or for themselves.
                line = event.start_mark.line + 1
                raise _refused(file, line, f"*{event.anchor}", "values without aliases")
        root = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise _refused(file, 1, "its text", "YAML of fewer levels") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = 1 if mark is None else mark.line + 1
        reason = getattr(error, "problem", None) or str(error)
        raise _refused(file, line, "its text", f"YAML: {reason}") from error
    lines: dict[Place, int] = {}
    twice: list[Problem] = []
    for place, line in _places(root, ()) if root is not None else ():
        # safe_load would keep the last of them without a word
        if place in lines:
            twice.append(
                Problem(line, key_text(place), "a second time", f"one such key (also line {lines[place]})")
            )
        lines[place] = line
    if twice:
        raise StudyError(file, twice)
    if not isinstance(values, dict):
        raise _refused(file, 1, repr(values), "a mapping with name, models, methods, tasks …")
    return Document(file, _with_texts(values), lines)


def _with_texts(value: Any) -> Any:
    """Keys as texts, as places have them."""
    if isinstance(value, dict):
        return {str(key): _with_texts(entry) for key, entry in value.items()}
    return list(map(_with_texts, value)) if isinstance(value, list) else value


def _refused(file: str | Path, line: int, value: str, remedy: str) -> StudyError:
    return StudyError(file, [Problem(line, "the file", value, remedy)])


def _places(node: yaml.Node, place: Place) -> Iterator[tuple[Place, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, str(key.value))
            yield inner, key.start_mark.line + 1
            yield from _places(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            inner = (*place, index)
            yield inner, value.start_mark.line + 1
            yield from _places(value, inner)
