"""The package's errors: each names the argument, its value and what would be right."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import ClassVar

FAILURE, MISTAKE = 1, 2


class SparseMMError(Exception):
    """Base of every error this package raises on purpose.

    Attributes
    ----------
    exit_code : int
        Of a command that ends with it: 2 where another command line would do, 1 where something failed.
    """

    exit_code: ClassVar[int] = FAILURE


class UsageError(SparseMMError):
    """Something else must be asked for; nothing has failed."""

    exit_code = MISTAKE


class ConfigError(UsageError, ValueError):
    """An argument has a value that cannot work.

    Parameters
    ----------
    argument : str
        Name of the argument as the user wrote it.
    value : object
        The value that was given.
    remedy : str
        What would be right, for example ``"an odd integer >= 1"``.
    """

    def __init__(self, argument: str, value: object, remedy: str):
        self.argument, self.value, self.remedy = argument, value, remedy
        super().__init__(f"{argument}={value!r} is not valid: expected {remedy}")


class HeadScoreError(UsageError, ValueError):
    """A head-score table is missing, malformed, or does not fit the model."""


class UnsupportedError(UsageError, RuntimeError):
    """The request is understood but this package cannot do it; the message says what to do instead."""


class JournalError(SparseMMError):
    """Records on disk cannot be used: they are locked or damaged, or cannot be written."""


class EvaluationError(SparseMMError, RuntimeError):
    """A run of lmms-eval left no results, or fewer than it was asked for."""


@contextmanager
def in_one_line() -> Iterator[None]:
    """The place where the errors of a command leave: as one line on stderr, with an exit code."""
    try:
        yield
    except SparseMMError as error:
        _leave(str(error), error.exit_code)
    except OSError as error:
        about = "" if error.filename is None else f"{error.filename}: "
        _leave(f"{about}{error.strerror or error}", FAILURE)


def _leave(message: str, code: int) -> None:
    print(f"sparsemm: {message}", file=sys.stderr)
    sys.exit(code)


def reason_of(error: Exception) -> str:
    """What went wrong, in one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def nearest(name: object, valid: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` where a valid name is near, else nothing."""
    near = get_close_matches(str(name), list(valid), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def one_of(name: object, valid: Iterable[str]) -> str:
    """A remedy that lists what is valid, with the nearest name."""
    return "one of " + ", ".join(valid) + nearest(name, valid)
