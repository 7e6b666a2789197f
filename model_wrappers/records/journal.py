"""The journal: every answer on disk as soon as it is known, found again by what it depends on."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import platformdirs

from sparsemm_eval.errors import SparseMMError
from sparsemm_eval.model_wrappers.answering.answer import Answer, Measurement
from sparsemm_eval.model_wrappers.answering.samples import Sample
from sparsemm_eval.model_wrappers.records.run_record import write_json

RUNS = "runs"


class JournalError(SparseMMError):
    """The journal cannot be used: it is locked, damaged or cannot be written."""


def journal_folder(argument: str, model_name: str, run_digest: str) -> Path | None:
    """Where a run's journal lies; None for ``off``."""
    if argument == "off":
        return None
    if argument == "auto":
        return (
            Path(platformdirs.user_cache_dir("sparsemm-eval"))
            / "journals"
            / f"{model_name}-{run_digest[:16]}"
        )
    return Path(argument)


class Journal:
    """Answers of one run, one file per task and process.

    A record is found by its key: the digest of the run identity (config, head scores, weights, versions,
    dtype …) and of the sample (task, document, prompt, images, generation settings). A changed knob therefore
    never finds an old answer, and runs of different configuration may share a folder.

    Parameters
    ----------
    folder : path-like
    identity : mapping
        Of the run; kept beside the records, so that they can be explained.
    run_digest : str
        Digest of ``identity``.
    rank : int
        Over all hosts; no two processes write one file.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], run_digest: str, rank: int):
        self.folder, self.run_digest, self.rank = Path(folder), run_digest, rank
        self._files: dict[str, BinaryIO] = {}
        self._records: dict[str, bytes] = {}
        self._locks = ExitStack()
        with _explained(f"journal {self.folder} cannot be used"):
            (self.folder / RUNS).mkdir(parents=True, exist_ok=True)
            if rank == 0:
                write_json(self.folder / RUNS / f"{run_digest}.json", identity)

    def open_task(self, task: str) -> None:
        """Lock this process's file for a task and read what is known of the task.

        Raises
        ------
        JournalError
            If another run has the file, or it is damaged.
        """
        if task in self._files:
            return
        folder = self.folder / task_folder(task)
        with _explained(f"journal {folder} cannot be used"):
            folder.mkdir(parents=True, exist_ok=True)
            own = folder / f"rank-{self.rank:05d}.jsonl"
            self._lock(own)
            own.touch()
            for path in sorted(folder.glob("rank-*.jsonl")):
                whole = 0
                for line in _whole_lines(path):
                    whole += len(line)
                    record = _parse(line, path)
                    if record["run"] == self.run_digest:
                        self._records[record["key"]] = line
                if path == own and path.stat().st_size > whole:
                    os.truncate(path, whole)
            self._files[task] = own.open("ab")

    def find(self, sample: Sample) -> Answer | None:
        """The answer to a sample, if it is known."""
        line = self._records.get(self._key(sample))
        return None if line is None else to_answer(json.loads(line))

    def append(self, samples: Sequence[Sample], answers: Sequence[Answer]) -> None:
        """Write a batch's new answers; they survive a kill at any later moment.

        Raises
        ------
        JournalError
            If they cannot be written, for instance because the disk is full.
        """
        lines: dict[str, bytes] = {}
        for sample, answer in zip(samples, answers, strict=True):
            key = self._key(sample)
            if key not in self._records:
                lines[key] = _line(key, self.run_digest, sample.digest, answer)
        if not lines:
            return
        task = answers[0].task
        file = self._files[task]
        with _explained(
            f"journal {file.name} cannot be written; the {len(self._records)} answers before are safe, run "
            "the same command again when there is room (or with journal=PATH elsewhere)"
        ):
            file.write(b"".join(lines.values()))
            file.flush()
            os.fsync(file.fileno())
        self._records.update(lines)

    def close(self) -> None:
        """Close files and release locks."""
        for file in self._files.values():
            try:
                file.close()
            except OSError:
                # A write that failed is tried once more here; it was reported when it failed.
                continue
        self._files.clear()
        self._records.clear()
        self._locks.close()

    def _lock(self, path: Path) -> None:
        lock = filelock.FileLock(str(path) + ".lock", timeout=0)
        try:
            lock.acquire()
        except (filelock.Timeout, RuntimeError) as error:
            raise JournalError(
                f"journal {path} is in use by another run: wait for it, or give this one journal=PATH or "
                "journal=off"
            ) from error
        self._locks.callback(lock.release)

    def _key(self, sample: Sample) -> str:
        return hashlib.sha256(f"{self.run_digest}:{sample.digest}".encode()).hexdigest()


def task_folder(task: str) -> str:
    """A task's name as a folder name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", task)


def read_journal(folder: str | Path) -> Iterator[dict[str, Any]]:
    """All records of a journal, in order of their files; a torn last line is left out."""
    for path in sorted(Path(folder).glob("*/rank-*.jsonl")):
        for line in _whole_lines(path):
            yield _parse(line, path)


def read_identity(folder: str | Path, run_digest: str) -> dict[str, Any]:
    """The identity of a run that wrote to a journal."""
    path = Path(folder) / RUNS / f"{run_digest}.json"
    with _explained(f"journal {folder} lacks {path.name}"):
        return json.loads(path.read_text(encoding="utf-8"))


def to_answer(record: Mapping[str, Any]) -> Answer:
    """The answer in a record."""
    return Answer(
        task=record["task"],
        doc_id=record["doc_id"],
        repeat=record["repeat"],
        text=record["text"],
        tokens=tuple(record["tokens"]),
        measured=Measurement.from_compact_record(record["measured"]),
    )


def _line(key: str, run_digest: str, sample_digest: str, answer: Answer) -> bytes:
    record = {
        "key": key,
        "run": run_digest,
        "sample": sample_digest,
        "task": answer.task,
        "doc_id": answer.doc_id,
        "repeat": answer.repeat,
        "text": answer.text,
        "tokens": list(answer.tokens),
        "measured": answer.measured.to_compact_record(),
    }
    return (json.dumps(record) + "\n").encode()


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Lines that end; a process killed while writing leaves one that does not."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


def _parse(line: bytes, path: Path) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError as error:
        raise JournalError(f"journal {path} is damaged ({error}): remove the line {line[:60]!r}") from error


class _explained:
    """Turns an OSError into a JournalError that says what could not be done."""

    def __init__(self, what: str):
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            raise JournalError(f"{self.what}: {error.strerror or error}") from error
