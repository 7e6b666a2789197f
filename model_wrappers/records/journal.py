"""The journal: every answer on disk as soon as it is known, found again by what it depends on.

A run can be compared with the journal of a FullKV run: whether, and how nearly, it gives the same answers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rapidfuzz.distance import Levenshtein

from sparsemm_eval.errors import ConfigError, JournalError, reason_of
from sparsemm_eval.files import RecordStore, read_records, user_cache, write_json_atomically
from sparsemm_eval.methods import fullkv
from sparsemm_eval.model_wrappers.answering.answer import Answer, Measurement
from sparsemm_eval.model_wrappers.answering.samples import Sample

RUNS = "runs"
KIND = "rank"
ELSEWHERE = "give this one journal=PATH or journal=off"


def journal_folder(argument: str, model_name: str, run_digest: str) -> Path | None:
    """Where a run's journal lies; None for ``off``."""
    if argument == "off":
        return None
    if argument == "auto":
        return user_cache("journals", f"{model_name}-{run_digest[:16]}")
    return Path(argument)


class Journal:
    """Answers of one run, one file per task and process.

    A record is found by its key: the digest of the run identity (config, head scores, weights, versions,
    dtype …) and of the sample (task, document, prompt, images, generation settings; evidence). A changed
    knob therefore never finds an old answer, and runs of different configuration may share a folder.

    Parameters
    ----------
    identity : mapping
        Of the run; kept beside the records, so that they can be explained.
    run_digest : str
        Digest of ``identity``.
    rank : int
        Over all hosts; no two processes write one file.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], run_digest: str, rank: int):
        self.folder, self.run_digest, self.rank = Path(folder), run_digest, rank
        self._stores: dict[str, RecordStore] = {}
        self._open = ExitStack()
        if rank == 0:
            try:
                write_json_atomically(self.folder / RUNS / f"{run_digest}.json", identity)
            except OSError as error:
                raise JournalError(f"journal {self.folder} cannot be used: {error.strerror}") from error

    def open_task(self, task: str) -> None:
        """Lock this process's file for a task and read what is known of the task.

        Raises
        ------
        JournalError
            If another run has the file, or it is damaged.
        """
        name = task_folder(task)
        if name not in self._stores:
            store = RecordStore(self.folder / name, KIND, self.rank, unit="answers", elsewhere=ELSEWHERE)
            self._stores[name] = self._open.enter_context(store)

    def find(self, sample: Sample) -> Answer | None:
        """The answer to a sample of an open task, if it is known."""
        store, key = self._stores[task_folder(sample.request.task)], self._key(sample)
        if key not in store:
            return None
        record = store[key]
        place = (record[name] for name in ("task", "doc_id", "repeat", "text"))
        return Answer(*place, tuple(record["tokens"]), Measurement.from_compact_record(record["measured"]))

    def append(self, samples: Sequence[Sample], answers: Sequence[Answer]) -> None:
        """Write a batch's new answers, all of one task; they survive a kill at any later moment.

        Raises
        ------
        JournalError
            If they cannot be written, for instance because the disk is full.
        """
        store = self._stores[task_folder(answers[0].task)]
        records = {}
        for sample, answer in zip(samples, answers, strict=True):
            key = self._key(sample)
            if key not in store:
                named = {"run": self.run_digest, "sample": sample.digest, **vars(answer)}
                records[key] = named | {"measured": answer.measured.to_compact_record()}
        if records:
            store.append(records)

    def close(self) -> None:
        """Close files and release locks."""
        self._open.close()
        self._stores.clear()

    def _key(self, sample: Sample) -> str:
        # what was measured depends on the evidence, although the answer does not
        evidence = f":{sample.evidence}" if sample.evidence else ""
        return hashlib.sha256(f"{self.run_digest}:{sample.digest}{evidence}".encode()).hexdigest()


def task_folder(task: str) -> str:
    """A task's name as a folder name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", task)


def read_journal(folder: str | Path) -> Iterator[dict[str, Any]]:
    """All records of a journal, in order of their files; a torn last line is left out.

    Raises
    ------
    JournalError
        If a file is damaged or cannot be read.
    """
    for path in sorted(Path(folder).glob(f"*/{KIND}-*.jsonl")):
        yield from read_records(path, "name the journal of another run")


def read_identity(folder: str | Path, run_digest: str) -> dict[str, Any]:
    """The identity of a run that wrote to a journal.

    Raises
    ------
    JournalError
        If it is missing or damaged.
    """
    path = Path(folder) / RUNS / f"{run_digest}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JournalError(f"journal {folder} lacks {path.name}: {reason_of(error)}") from error


def read_reference(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The records of a FullKV run's journal by sample digest, to compare answers with.

    Raises
    ------
    ConfigError
        If the folder holds no answers, those of another method, or those of several runs.
    """
    records, runs = {}, set()
    for record in read_journal(folder):
        records[record["sample"]] = record
        runs.add(record["run"])
    if not runs:
        raise ConfigError("reference", str(folder), "the folder of a FullKV run's journal, with answers")
    identities = [read_identity(folder, run) for run in sorted(runs)]
    if [one["compression"]["method"] for one in identities] != [fullkv.METHOD.name]:
        found = ", ".join(one["model_name"] for one in identities)
        raise ConfigError("reference", str(folder), f"the journal of one FullKV run (it holds: {found})")
    return records


def agreement_with(
    known: Mapping[str, Any] | None, text: str, tokens: Sequence[int]
) -> dict[str, float | None]:
    """Whether the texts are equal, and 1 − edit distance of the tokens / length of the longer answer.

    Both None where nothing is known of the sample.
    """
    if known is None:
        return {"agreement_identical": None, "agreement_edit_similarity": None}
    similarity = Levenshtein.normalized_similarity(list(tokens), list(known["tokens"]))
    return {"agreement_identical": text == known["text"], "agreement_edit_similarity": similarity}
