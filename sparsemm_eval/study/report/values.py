"""Table entries as JSON values."""

from __future__ import annotations

from typing import Any

import pandas as pd


def plain(value: Any) -> Any:
    """A JSON value; what is missing becomes None."""
    if value is None or pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value
