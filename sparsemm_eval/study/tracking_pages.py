"""The page tasks' images and answers, which every installation has: for thumbnails and early scores."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image


class Pages:
    """Held-out pages by task and document.

    Parameters
    ----------
    folder : pathlib.Path or None
        With ``<task>.parquet``; the installed one by default.
    """

    def __init__(self, folder: Path | None = None):
        if folder is None:
            from sparsemm_eval import tasks

            folder = tasks.FOLDER / "pages" / "data"
        self._folder = folder
        self._columns: dict[tuple[str, str], pd.Series] = {}

    def image(self, task: str, doc_id: int) -> Image.Image | None:
        """The page; None for a task that is not one of these."""
        from PIL import Image

        cell = self._cell(task, "image", doc_id)
        return None if cell is None else Image.open(io.BytesIO(cell["bytes"]))

    def score(self, task: str, doc_id: int, text: str) -> float | None:
        """The task's own score of an answer; None for a task that is not one of these."""
        from sparsemm_eval.tasks.pages import metrics

        scorers = {"pages_qa": metrics.exact_match, "pages_ocr": metrics.character_accuracy}
        truth = self._cell(task, "answer", doc_id) if task in scorers else None
        return None if truth is None else scorers[task](text, truth)

    def _cell(self, task: str, column: str, doc_id: int) -> Any:
        path = self._folder / f"{task}.parquet"
        if not path.is_file():
            return None
        if (task, column) not in self._columns:
            import pandas as pd

            self._columns[task, column] = pd.read_parquet(path, columns=[column])[column]
        values = self._columns[task, column]
        return values.iloc[doc_id] if 0 <= doc_id < len(values) else None
