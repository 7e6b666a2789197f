"""The package's errors: each names the argument, its value and what would be right."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SparseMMError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(SparseMMError, ValueError):
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


class HeadScoreError(SparseMMError, ValueError):
    """A head-score table is missing, malformed, or does not fit the model."""


class UnsupportedError(SparseMMError, RuntimeError):
    """The request is understood but this package cannot do it; the message says what to do instead."""


class JournalError(SparseMMError):
    """Records on disk cannot be used: they are locked or damaged, or cannot be written."""


class EvaluationError(SparseMMError, RuntimeError):
    """A run of lmms-eval left no results, or fewer than it was asked for."""


def nearest(name: object, valid: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` where a valid name is near, else nothing."""
    near = get_close_matches(str(name), list(valid), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def one_of(name: object, valid: Iterable[str]) -> str:
    """A remedy that lists what is valid, with the nearest name."""
    return "one of " + ", ".join(valid) + nearest(name, valid)
