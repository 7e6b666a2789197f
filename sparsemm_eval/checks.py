"""Reading values that several commands take."""

from __future__ import annotations

from sparsemm_eval.errors import ConfigError


def whole_numbers(name: str, text: str) -> list[int]:
    """``"16,32"`` -> [16, 32].

    Raises
    ------
    ConfigError
        For anything but whole numbers above 0 with commas between.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(name, text, "whole numbers above 0, separated by commas")
    return [int(part) for part in parts]


def natural_numbers(name: str, text: str) -> list[int]:
    """``"0,1"`` -> [0, 1].

    Raises
    ------
    ConfigError
        For anything but whole numbers from 0 on with commas between.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(name, text, "whole numbers from 0 on, separated by commas")
    return [int(part) for part in parts]


def fractions(name: str, text: str) -> list[float]:
    """``"0.05,0.1"`` -> [0.05, 0.1].

    Raises
    ------
    ConfigError
        For anything but numbers in [0, 1] with commas between.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 <= value <= 1 for value in values):
        raise ConfigError(name, text, "numbers from 0 to 1, separated by commas")
    return values
