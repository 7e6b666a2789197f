"""What is wrong with a study file: every problem with its line, all reported at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sparsemm_eval.errors import UsageError


@dataclass(frozen=True)
class Problem:
    """One thing that cannot work.

    Attributes
    ----------
    line : int
        In the study file, from 1.
    key : str
        Where it stands, for instance ``methods[2]``.
    value : str
        As text.
    remedy : str
        What would be right.
    """

    line: int
    key: str
    value: str
    remedy: str

    def text(self, file: str) -> str:
        """One line, as compilers write them."""
        return f"{file}:{self.line}: {self.key}: {self.value} is not valid: expected {self.remedy}"


class StudyError(UsageError, ValueError):
    """A study file that cannot be run.

    Parameters
    ----------
    file : path-like
    problems : iterable of Problem
        All of them.
    """

    def __init__(self, file: str | Path, problems: Iterable[Problem]):
        unique = {(problem.line, problem.key, problem.remedy): problem for problem in problems}
        self.file = str(file)
        self.problems = sorted(unique.values(), key=lambda problem: (problem.line, problem.key))
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''} in {file}; nothing was started"
        super().__init__("\n".join([head, *(f"  {problem.text(self.file)}" for problem in self.problems)]))
