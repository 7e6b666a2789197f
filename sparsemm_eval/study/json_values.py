"""Values of tables and records in JSON types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def canonical(value: Any) -> Any:
    """5.0 -> 5: equal settings shall be written the same."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def plain(value: Any) -> Any:
    """A value in JSON types: numpy scalars unpacked; NaN, infinity and what pandas calls missing as None."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return None if str(value) in ("<NA>", "NaT") else str(value)
