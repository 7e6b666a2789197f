"""The run record: what was run and what was measured, as files beside lmms-eval's results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from sparsemm_eval.errors import ConfigError, EvaluationError
from sparsemm_eval.files import explained, write_json_atomically
from sparsemm_eval.model_wrappers.answering.answer import Answer
from sparsemm_eval.model_wrappers.answering.samples import Sample

RUN_SUFFIX = "_sparsemm_run.json"
SAMPLES_SUFFIX = "_sparsemm_samples.rank{rank}.jsonl"


class RunFiles:
    """Writes one run's files to a folder; several runs may share it.

    Parameters
    ----------
    folder : path-like or None
        None: nothing is written.
    stem : str
        How the files' names begin, equal on all processes.
    rank : int
        Every process writes its own samples; rank 0 writes the record.
    """

    def __init__(self, folder: str | Path | None, stem: str, rank: int):
        self.folder, self.stem, self.rank = None if folder is None else Path(folder), stem, rank
        self._samples: TextIO | None = None
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                remedy = f"a folder to write to ({error.strerror})"
                raise ConfigError("stats_dir", str(folder), remedy) from error

    def add(
        self, answer: Answer, sample: Sample, recall: Mapping[str, float | None], *, restored: bool
    ) -> None:
        """Append one sample's measurements, and what was kept of its evidence.

        Raises
        ------
        JournalError
            If they cannot be written, as on a full disk; so does ``finish``.
        """
        if self.folder is None:
            return
        record = {
            "task": answer.task,
            "doc_id": answer.doc_id,
            "repeat": answer.repeat,
            "sample": sample.digest,
            "images": sample.image_digest,
            "answer": answer.text,
            "tokens": len(answer.tokens),
            "restored": restored,
            **answer.measured.to_record(),
            **recall,
        }
        with explained(f"stats_dir={str(self.folder)!r} cannot be written"):
            if self._samples is None:
                name = self.stem + SAMPLES_SUFFIX.format(rank=self.rank)
                self._samples = (self.folder / name).open("x", encoding="utf-8")
            self._samples.write(json.dumps(record, ensure_ascii=False) + "\n")

    def finish(self, record: Mapping[str, Any]) -> Path | None:
        """Close the samples; rank 0 writes the record and returns its path."""
        if self.folder is None:
            return None
        path = self.folder / (self.stem + RUN_SUFFIX)
        with explained(f"stats_dir={str(self.folder)!r} cannot be written"):
            if self._samples is not None:
                self._samples.close()
                self._samples = None
            if self.rank == 0:
                write_json_atomically(path, record)
        return path if self.rank == 0 else None


def read_runs(folder: str | Path) -> list[dict[str, Any]]:
    """All run records of a folder, oldest first, each with its ``path``."""
    paths = sorted(Path(folder).glob("*" + RUN_SUFFIX), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text(encoding="utf-8")) | {"path": str(path)} for path in paths]


def complete_results(results: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """Put a run record into lmms-eval's results file, under the key ``sparsemm``, and return the whole.

    lmms-eval counts skipped samples as effective ones; they are taken out of ``n-samples``.

    Raises
    ------
    EvaluationError
        If fewer answers were measured than lmms-eval scored.
    """
    contents = json.loads(results.read_text(encoding="utf-8"))
    documents = {name.partition("#")[0] for name in run["skipped"]}  # #1, #2 … are further answers to one
    skipped = Counter(name.rpartition("/")[0] for name in documents)
    counts = contents.get("n-samples", {})
    for task, count in counts.items():
        count["effective"] -= skipped[task]
    scored = sum(count["effective"] for count in counts.values())
    if run["measured"]["samples"] < scored:
        measured = run["measured"]["samples"]
        raise EvaluationError(f"{results}: {scored} answers were scored, but only {measured} were measured")
    contents["sparsemm"] = dict(run)
    write_json_atomically(results, contents)
    return contents
