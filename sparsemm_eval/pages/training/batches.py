"""Training batches: pages of one size with questions and answers, tokenized in the chat format."""

from dataclasses import dataclass

import numpy as np
import torch

from sparsemm_eval.pages.drawing.render import make_page
from sparsemm_eval.pages.prompts import (
    RECALL_REQUEST,
    choice_question,
    made_up_values,
    read_question,
    value_question,
)

IGNORE = -100
QUESTIONS_PER_PAGE = 12


@dataclass(frozen=True)
class Batch:
    """Pages of one size; a sequence is prefix + image features + suffix.

    Attributes
    ----------
    pages : tuple of Page
    pixels : uint8 tensor, [B, height, width]
    prefix : int64 tensor, [P]
        Tokens before the image, the same for all rows.
    suffix : int64 tensor, [B, T]
        Tokens after the image, padded on the right.
    targets : int64 tensor, [B, T]
        Token to predict at each suffix position, `IGNORE` outside answers.
    answers : int64 tensor, [B, T]
        Number of the answer a target belongs to, counted over the batch; -1 outside answers.
    reading : bool tensor, [B]
        True for rows that read the whole page, False for rows that look values up.
    """

    pages: tuple
    pixels: torch.Tensor
    prefix: torch.Tensor
    suffix: torch.Tensor
    targets: torch.Tensor
    answers: torch.Tensor
    reading: torch.Tensor


def _turns(page, reading, rng, variety, choices):
    """Questions and answers about one page."""
    if reading:
        # Without choices no number is drawn, so that other stages do not depend on there being any.
        chosen = choices and rng.random() < choices
        question = _choice_question(page, rng) if chosen else read_question(rng, variety)
        return [(question, page.text())]
    shown = rng.permutation(len(page.entries))[:QUESTIONS_PER_PAGE]
    return [(value_question(page.entries[i].key, rng, variety), page.entries[i].value) for i in shown]


def _choice_question(page, rng):
    value = page.entries[int(rng.integers(len(page.entries)))].value
    return choice_question(value, made_up_values(value, rng))


def _recall_pieces(page, rng, family, opening):
    """Text pieces of a row that lists all entries in random order, where only the values are answers."""
    pieces, ending = [(opening + RECALL_REQUEST + family.chat.ask(), False)], ""
    for i in rng.permutation(len(page.entries)):
        pieces += [(f"{ending}{page.entries[i].key} ", False), (page.entries[i].value, True)]
        ending = "\n"
    return pieces


def _pieces(turns, family, opening):
    """Text pieces of a row as (text, is an answer) in order."""
    pieces = []
    for number, (question, answer) in enumerate(turns):
        before = opening if number == 0 else family.chat.next_turn().removeprefix(family.special.eos)
        pieces += [(before + question + family.chat.ask(), False), (answer + family.special.eos, True)]
    return pieces


def make_batch(family, tokenizer, seed, step, size, rows, variety=0.0, choices=0.0, hint=False, recall=0.0):
    """Build one batch; the same arguments give the same batch.

    Parameters
    ----------
    family : Family
    tokenizer : PreTrainedTokenizerFast
    seed, step : int
        Name the pages: step s uses pages s * 1000 ... of the training split.
    size : (int, int)
        Rows and columns of the pages in cells.
    rows : int
        Batch size, at most 1000; three in eight rows look values up, the others read pages, which is harder.
    variety : float
        Probability of an unusual wording.
    choices : float
        Probability of a request to read the page being multiple-choice.
    hint : bool
        Ask for a value's first character at the end of its question already. Where a chat format puts many
        tokens between question and answer, the look-up is then learned first and carried over to the answer.
    recall : float
        Probability that a row that would read the page lists its entries in random order instead, and learns
        the values only. Reading in order can be learned from places alone, this cannot.

    Returns
    -------
    Batch
    """
    if not 0 < rows <= 1000:
        raise ValueError(f"rows={rows} must lie in 1..1000, since a step names at most 1000 pages")
    rng = np.random.default_rng((7, seed, step))
    pages = tuple(make_page("train", seed, step * 1000 + i, size) for i in range(rows))
    reading = torch.arange(rows) >= max(1, rows * 3 // 8)
    recalling = torch.zeros_like(reading)
    if recall:
        recalling = reading & torch.from_numpy(rng.random(rows) < recall)
        reading &= ~recalling
    before_image, after_image = family.chat.image.split(family.image_token)
    # Some evaluation prompts put a line break between image and question, others do not.
    openings = (after_image, after_image + "\n") if family.special.bos else (after_image,)
    pieces = []
    for i, page in enumerate(pages):
        opening = openings[int(rng.integers(len(openings)))]
        if recalling[i]:
            pieces.append(_recall_pieces(page, rng, family, opening))
        else:
            turns = _turns(page, bool(reading[i]), rng, variety, choices)
            pieces.append(_pieces(turns, family, opening))
    asking = [hint and not (reading[i] or recalling[i]) for i in range(rows)]
    suffix, targets, answers = _suffixes(pieces, asking, family, tokenizer)
    start = (family.special.bos or "") + family.chat.start() + before_image
    prefix = torch.tensor(_encode(tokenizer, [start])[0])
    pixels = torch.from_numpy(np.stack([page.pixels for page in pages]))
    return Batch(pages, pixels, prefix, suffix, targets, answers, reading)


def _encode(tokenizer, texts):
    encoded = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return [one.ids for one in encoded]


def _suffixes(pieces, asking, family, tokenizer):
    """Tokens, targets and answer numbers of `Batch` from the text pieces of its rows.

    Where `asking` holds for a row, its questions' last tokens get the first token of the answer as target.
    """
    ids = iter(_encode(tokenizer, [text for row in pieces for text, _ in row]))
    between = len(_encode(tokenizer, [family.chat.ask()])[0])
    tokens, numbers, hints = [[] for _ in pieces], [[] for _ in pieces], []
    number = 0
    for i, row in enumerate(pieces):
        for _, is_answer in row:
            piece = next(ids)
            if is_answer and asking[i]:
                hints.append((i, len(tokens[i]) - between - 1, piece[0], number))
            tokens[i] += piece
            numbers[i] += [number if is_answer else -1] * len(piece)
            number += 1
    rows, length = len(tokens), max(map(len, tokens))
    suffix = torch.full((rows, length), tokenizer.pad_token_id)
    answers = torch.full((rows, length), -1)
    for i in range(rows):
        suffix[i, : len(tokens[i])] = torch.tensor(tokens[i])
        answers[i, : len(tokens[i])] = torch.tensor(numbers[i])
    # Position t predicts token t + 1; the last position predicts nothing.
    answers = torch.cat([answers[:, 1:], torch.full((rows, 1), -1)], 1)
    targets = torch.cat([suffix[:, 1:], torch.full((rows, 1), IGNORE)], 1).masked_fill(answers < 0, IGNORE)
    for i, position, first, answer in hints:
        targets[i, position], answers[i, position] = first, answer
    return suffix, targets, answers
