"""What readers can be asked: the wordings of the two page tasks, and others that benchmarks use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

VALUE_QUESTION = "value of {key}?"
READ_QUESTION = "read all text"
# Of the training alone.
RECALL_REQUEST = "Write all words"

OTHER_VALUE_QUESTIONS = (
    "What is the value of {key}?",
    "What is written after {key}?",
    "What is the number of {key}?",
    "Which value is {key}?",
    "{key}?",
)
OTHER_READ_QUESTIONS = (
    "What is written in the image?",
    "Read all the text in this image.",
    "What text is shown in the picture?",
    "Please provide a caption for the image.",
    "Provide a one-sentence caption for the provided image.",
)
_POST_PROMPTS = (
    "\nAnswer the question using a single word or phrase.",
    "\nAnswer the question with a single word.",
    "\nProvide a short and direct response.",
    " Answer:",
)

CHOICES = "ABCD"
_CHOICE_PROMPT = "\n\nAnswer with the option's letter from the given choices directly."


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def value_question(key: str, rng: np.random.Generator, variety: float) -> str:
    """A question for the value of `key`; with probability `variety` reworded, likewise a post-prompt."""
    question = _pick(rng, OTHER_VALUE_QUESTIONS) if rng.random() < variety else VALUE_QUESTION
    ending = _pick(rng, _POST_PROMPTS) if rng.random() < variety else ""
    return question.format(key=key) + ending


def read_question(rng: np.random.Generator, variety: float) -> str:
    """A request to read the page; with probability `variety` another wording, likewise a post-prompt."""
    question = _pick(rng, OTHER_READ_QUESTIONS) if rng.random() < variety else READ_QUESTION
    ending = _pick(rng, _POST_PROMPTS) if rng.random() < variety / 2 else ""
    return question + ending


def offered_values(value: str, rng: np.random.Generator) -> list[str]:
    """Four numbers as long as `value`, itself among them; sorted, so that any can be the right one."""
    others = ["".join(str(digit) for digit in rng.integers(10, size=len(value))) for _ in CHOICES[1:]]
    return sorted([value, *others])


def choice_question(options: Sequence[str]) -> str:
    """A request to read the page that offers four values to choose from, as MMBench words it.

    The readers answer with what is written, which MMBench's static scoring accepts when it holds one option.
    """
    listed = "".join(f"\n{letter}. {option}" for letter, option in zip(CHOICES, options, strict=True))
    return f"{OTHER_READ_QUESTIONS[0]} There are several options:{listed}{_CHOICE_PROMPT}"
