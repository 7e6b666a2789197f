"""Agreement: whether, and how nearly, a run gives the same answers as FullKV to the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rapidfuzz.distance import Levenshtein

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.methods import fullkv
from sparsemm_eval.model_wrappers.records.journal import read_identity, read_journal


@dataclass(frozen=True)
class Reference:
    """Answers to compare with: sample digest -> (text, tokens)."""

    answers: dict[str, tuple[str, Sequence[int]]]

    @classmethod
    def from_journal(cls, folder: str | Path) -> Reference:
        """Read a FullKV run's journal.

        Raises
        ------
        ConfigError
            If the folder holds no answers, those of another method, or those of several runs.
        """
        answers: dict[str, tuple[str, Sequence[int]]] = {}
        runs = set()
        for record in read_journal(folder):
            runs.add(record["run"])
            answers[record["sample"]] = (record["text"], record["tokens"])
        if not runs:
            raise ConfigError("reference", str(folder), "the folder of a FullKV run's journal, with answers")
        identities = [read_identity(folder, run) for run in sorted(runs)]
        if [one["compression"]["method"] for one in identities] != [fullkv.METHOD.name]:
            found = ", ".join(one["model_name"] for one in identities)
            raise ConfigError("reference", str(folder), f"the journal of one FullKV run (it holds: {found})")
        return cls(answers)

    def compare(self, sample_digest: str, text: str, tokens: Sequence[int]) -> dict[str, float | None]:
        """Whether the texts are equal, and 1 − edit distance of the tokens / length of the longer answer.

        Both None where the reference has no answer to the sample.
        """
        if sample_digest not in self.answers:
            return {"agreement_identical": None, "agreement_edit_similarity": None}
        known_text, known_tokens = self.answers[sample_digest]
        similarity = Levenshtein.normalized_similarity(list(tokens), list(known_tokens))
        return {"agreement_identical": text == known_text, "agreement_edit_similarity": similarity}
