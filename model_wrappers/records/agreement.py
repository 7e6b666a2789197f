"""Agreement: how often, and how nearly, two runs give the same answers to the same samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rapidfuzz.distance import Levenshtein

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.model_wrappers.records.journal import read_identity, read_journal


@dataclass
class Agreement:
    """Sums over compared samples.

    Attributes
    ----------
    compared, missing : int
        Samples with and without an answer in the reference.
    identical : int
        Samples whose answers are equal texts.
    similarity : float
        Sum of token-level edit similarities.
    """

    compared: int = 0
    missing: int = 0
    identical: int = 0
    similarity: float = 0.0

    def summary(self) -> dict[str, float]:
        """Shares and counts; shares are missing where nothing was compared."""
        counts: dict[str, float] = {"agreement_compared": self.compared, "agreement_missing": self.missing}
        if self.compared:
            counts["agreement_identical"] = self.identical / self.compared
            counts["agreement_edit_similarity"] = self.similarity / self.compared
        return counts

    @classmethod
    def merged(cls, parts: Iterable[Agreement]) -> Agreement:
        """The agreement of several processes as one."""
        whole = cls()
        for part in parts:
            whole.compared += part.compared
            whole.missing += part.missing
            whole.identical += part.identical
            whole.similarity += part.similarity
        return whole


class Reference:
    """Answers to compare with.

    Parameters
    ----------
    answers : dict
        Sample digest -> (text, tokens).
    """

    def __init__(self, answers: dict[str, tuple[str, Sequence[int]]]):
        self.answers = answers

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
        names = [read_identity(folder, run)["model_name"] for run in sorted(runs)]
        if len(names) > 1 or not names[0].endswith("_fullkv"):
            found = ", ".join(names)
            raise ConfigError("reference", str(folder), f"the journal of one FullKV run (it holds: {found})")
        return cls(answers)

    def compare(self, agreement: Agreement, sample_digest: str, text: str, tokens: Sequence[int]) -> None:
        """Add one sample to an agreement."""
        known = self.answers.get(sample_digest)
        if known is None:
            agreement.missing += 1
            return
        agreement.compared += 1
        agreement.identical += text == known[0]
        agreement.similarity += edit_similarity(tokens, known[1])


def edit_similarity(left: Sequence[int], right: Sequence[int]) -> float:
    """1 − edit distance of token sequences / length of the longer one; 1 for two empty ones."""
    return Levenshtein.normalized_similarity(list(left), list(right))
