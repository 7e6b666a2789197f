"""Journal: the scores of every finished image on disk, so that a killed run goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from sparsemm_eval.errors import HeadScoreError
from sparsemm_eval.heads.scoring.batch_scores import ImageScore

FORMAT = "sparsemm-eval/head-score-journal"
VERSION = 1
PATTERN = "part-*.jsonl"


class Journal:
    """A folder with one file per process; a file holds a header line, then one line per image.

    Lines are written, flushed and synced before the next batch begins. A torn last line, as a killed process
    leaves it, is dropped.

    Parameters
    ----------
    folder : str or Path
        Made when missing. Files of all processes in it are read.
    run : mapping
        What decides the scores, in JSON types. A journal of another run is refused.
    rank : int
        Number of this process; names the file it writes.

    Raises
    ------
    HeadScoreError
        If the folder holds a journal of another run or a file that is none.
    """

    def __init__(self, folder: str | Path, run: Mapping[str, Any], rank: int = 0):
        self.folder, self.run = Path(folder), dict(run)
        self.path = self.folder / PATTERN.replace("*", str(rank))
        self._file: Any = None

    def __enter__(self) -> Journal:
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = _whole_lines(self.path)
        if whole:
            self._check_header(self.path, whole[0])
        self._file = open(self.path, "r+" if self.path.exists() else "w", encoding="utf-8")
        self._file.truncate(sum(len(line.encode()) for line in whole))
        self._file.seek(0, os.SEEK_END)
        if not whole:
            self._write([{"format": FORMAT, "version": VERSION, "run": self.run}])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, scores: Mapping[int, ImageScore]) -> None:
        """Put finished images down, by number."""
        self._write(
            {
                "image": index,
                "tokens": score.tokens,
                "answer_tokens": score.answer_tokens,
                "scores": score.scores.tolist(),
                "hits": score.hits.tolist(),
                "bad_boxes": dict(score.bad_boxes),
            }
            for index, score in scores.items()
        )

    def read(self) -> dict[int, ImageScore]:
        """Finished images of all processes, by number, in ascending order."""
        found = {}
        for path in sorted(self.folder.glob(PATTERN)):
            lines = _whole_lines(path)
            if not lines:
                continue
            self._check_header(path, lines[0])
            for line in lines[1:]:
                record = json.loads(line)
                found[record["image"]] = ImageScore(
                    record["tokens"],
                    record["answer_tokens"],
                    torch.tensor(record["scores"], dtype=torch.float64),
                    torch.tensor(record["hits"], dtype=torch.int64),
                    record["bad_boxes"],
                )
        return dict(sorted(found.items()))

    def _write(self, records: Any) -> None:
        self._file.write("".join(json.dumps(record) + "\n" for record in records))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _check_header(self, path: Path, line: str) -> None:
        header = json.loads(line)
        if header.get("format") != FORMAT or header.get("version") != VERSION:
            raise HeadScoreError(
                f"{path} is no head-score journal of version {VERSION}: choose another folder"
            )
        theirs = header["run"]
        differing = [name for name in sorted({*theirs, *self.run}) if theirs.get(name) != self.run.get(name)]
        if differing:
            raise HeadScoreError(
                f"journal {str(path)!r} belongs to another run: "
                + ", ".join(
                    f"{name}={theirs.get(name)!r} there, {self.run.get(name)!r} here" for name in differing
                )
                + "; choose another journal folder or remove this one"
            )


def remove(folder: Path) -> None:
    """Delete a journal, and its folder if nothing else is in it."""
    for path in folder.glob(PATTERN):
        path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _whole_lines(path: Path) -> list[str]:
    """Lines of a file that end with a line break and are JSON, up to the first that does not."""
    lines = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            try:
                json.loads(line)
            except json.JSONDecodeError:
                break
            if not line.endswith("\n"):
                break
            lines.append(line)
    return lines
