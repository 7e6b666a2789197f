"""Wordings of the two page tasks: the ones the tasks use, and others that benchmarks use."""

VALUE_QUESTION = "value of {key}?"
READ_QUESTION = "read all text"

_OTHER_VALUE_QUESTIONS = (
    "What is the value of {key}?",
    "What is written after {key}?",
    "What is the number of {key}?",
    "Which value is {key}?",
    "{key}?",
)
_OTHER_READ_QUESTIONS = (
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

_CHOICES = "ABCD"
_CHOICE_PROMPT = "\n\nAnswer with the option's letter from the given choices directly."


def _pick(rng, options):
    return options[int(rng.integers(len(options)))]


def value_question(key, rng, variety):
    """A question for the value of `key`; with probability `variety` reworded, likewise a post-prompt."""
    question = _pick(rng, _OTHER_VALUE_QUESTIONS) if rng.random() < variety else VALUE_QUESTION
    ending = _pick(rng, _POST_PROMPTS) if rng.random() < variety else ""
    return question.format(key=key) + ending


def read_question(rng, variety):
    """A request to read the page; with probability `variety` another wording, likewise a post-prompt."""
    question = _pick(rng, _OTHER_READ_QUESTIONS) if rng.random() < variety else READ_QUESTION
    ending = _pick(rng, _POST_PROMPTS) if rng.random() < variety / 2 else ""
    return question + ending


def choice_question(key, value, others, rng):
    """A value question with four options, as MMBench words it.

    The readers answer with the option itself, which MMBench's static scoring accepts like its letter.

    Parameters
    ----------
    key, value : str
    others : sequence of str
        At least three other values on the page.
    rng : numpy.random.Generator
    """
    options = [value, *(others[i] for i in rng.permutation(len(others))[: len(_CHOICES) - 1])]
    shown = [options[place] for place in rng.permutation(len(options))]
    listed = "".join(f"\n{letter}. {option}" for letter, option in zip(_CHOICES, shown, strict=True))
    question = _OTHER_VALUE_QUESTIONS[0].format(key=key)
    return f"{question} There are several options:{listed}{_CHOICE_PROMPT}"
