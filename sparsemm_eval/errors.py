"""The package's errors: each names the argument, its value and what would be right."""


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
