"""Scores of the page tasks, as functions of two texts."""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein


def exact_match(answer: str, truth: str) -> float:
    """Whether an answer is the value asked for, up to blanks around it: 1.0 or 0.0."""
    return float(answer.strip() == truth.strip())


def character_accuracy(answer: str, truth: str) -> float:
    """Share of a page's characters that a transcription got right, in [0, 1].

    One minus the edit distance (insertions, deletions and substitutions of characters) over the length of the
    true text, not below 0, so that text invented beyond the page costs as much as text left out. Line breaks
    count, blanks around the whole text do not.

    Raises
    ------
    ValueError
        If `truth` is blank.
    """
    answer, truth = answer.strip(), truth.strip()
    if not truth:
        raise ValueError("truth is blank; character accuracy needs a page with text")
    return max(0.0, 1 - Levenshtein.distance(answer, truth) / len(truth))


METRICS = {"pages_qa": exact_match, "pages_ocr": character_accuracy}
