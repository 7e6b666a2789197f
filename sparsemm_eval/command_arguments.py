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
