"""Training batches: pages of one size with questions and answers, tokenized in the chat format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from sparsemm_eval.checks import checked, whole
from sparsemm_eval.pages.drawing.layout import keyed_once
from sparsemm_eval.pages.drawing.render import Page, make_page
from sparsemm_eval.pages.readers import questions
from sparsemm_eval.pages.readers.reader import Reader
from sparsemm_eval.pages.readers.recipe import Stage

IGNORE = -100
_QUESTIONS_PER_PAGE = 12
_PAGES_PER_STEP = 1000

#: Text pieces of a row as (text, is an answer) in order.
Pieces = list[tuple[str, bool]]


@dataclass(frozen=True)
class Batch:
    """Pages of one size; a sequence is prefix + image features + suffix.

    Attributes
    ----------
    pages : tuple of Page
        Row after row, P for each.
    pixels : uint8 tensor, [B * P, height, width]
    prefix : int64 tensor, [tokens]
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

    pages: tuple[Page, ...]
    pixels: torch.Tensor
    prefix: torch.Tensor
    suffix: torch.Tensor
    targets: torch.Tensor
    answers: torch.Tensor
    reading: torch.Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the pages in cells."""
        return self.pages[0].rows, self.pages[0].columns


def make_batch(
    reader: Reader,
    tokenizer: PreTrainedTokenizerFast,
    stage: Stage,
    seed: int,
    step: int,
    size: tuple[int, int],
    rows: int,
) -> Batch:
    """Build one batch; the same arguments give the same batch.

    The stage says what is asked for: its `values`, `prose`, `variety`, `choices`, `hint` and `recall`. Seed
    and step name the pages: step s uses pages s * 1000 ... of the training split, so that `rows`, the batch
    size, is at most 1000. `size` counts a page's rows and columns in cells.
    """
    checked(whole(1, _PAGES_PER_STEP), "rows", rows)
    rng = np.random.default_rng((7, seed, step))
    prose = rng.random(rows) < stage.prose if stage.prose else [False] * rows
    first, several = step * _PAGES_PER_STEP, range(stage.pages)
    shown = [
        [
            make_page("train", seed, first + i * stage.pages + k, size, bool(prose[i]), stage.letters)
            for k in several
        ]
        for i in range(rows)
    ]
    reading = torch.arange(rows) >= max(1, int(rows * stage.values))
    recalling = torch.zeros_like(reading)
    if stage.recall:
        recalling = reading & torch.from_numpy(rng.random(rows) < stage.recall)
        reading &= ~recalling
    before_image, after_image = reader.chat.image.split(reader.image_token)
    # Some evaluation prompts put a line break between image and question, others do not.
    openings = (after_image, after_image + "\n") if reader.special.bos else (after_image,)
    pieces = []
    for i, pages in enumerate(shown):
        opening = openings[int(rng.integers(len(openings)))]
        if recalling[i]:
            pieces.append(_recall_pieces(pages[0], rng, reader, opening))
        else:
            turns = _reading_turn(pages, rng, stage) if reading[i] else _value_turns(pages, rng, stage)
            pieces.append(_pieces(turns, reader, opening))
    hinted = [stage.hint and not (reading[i] or recalling[i]) for i in range(rows)]
    spelling = (rng, stage.spelled) if stage.spelled else None
    suffix, targets, answers = _suffixes(pieces, hinted, reader, tokenizer, spelling)
    start = (reader.special.bos or "") + reader.chat.start() + before_image
    prefix = torch.tensor(_encode(tokenizer, [start])[0])
    every = tuple(page for pages in shown for page in pages)
    pixels = torch.from_numpy(np.stack([page.pixels for page in every]))
    return Batch(every, pixels, prefix, suffix, targets, answers, reading)


def _reading_turn(pages: Sequence[Page], rng: np.random.Generator, stage: Stage) -> list[tuple[str, str]]:
    """The request to read pages, and their text."""
    text = "\n".join(page.text() for page in pages)
    # Without choices no number is drawn, so that other stages do not depend on there being any.
    if stage.choices and rng.random() < stage.choices:
        entries = pages[0].entries
        value = entries[int(rng.integers(len(entries)))].value
        return [(questions.choice_question(questions.offered_values(value, rng)), text)]
    return [(questions.read_question(rng, stage.variety), text)]


def _value_turns(pages: Sequence[Page], rng: np.random.Generator, stage: Stage) -> list[tuple[str, str]]:
    """Questions for values of pages, and the values; only for keys that one page alone has."""
    entries = keyed_once(pages)
    shown = [entries[i] for i in rng.permutation(len(entries))[:_QUESTIONS_PER_PAGE]]
    return [(questions.value_question(entry.key, rng, stage.variety), entry.value) for entry in shown]


def _pieces(turns: Sequence[tuple[str, str]], reader: Reader, opening: str) -> Pieces:
    pieces: Pieces = []
    for question, answer in turns:
        pieces += [(opening + question + reader.chat.ask(), False), (answer + reader.special.eos, True)]
        opening = reader.chat.next_turn().removeprefix(reader.special.eos)
    return pieces


def _recall_pieces(page: Page, rng: np.random.Generator, reader: Reader, opening: str) -> Pieces:
    """Pieces of a row that lists all entries in random order, where only the values are answers.

    Reading in order can be learned from places alone, this cannot.
    """
    pieces, ending = [(opening + questions.RECALL_REQUEST + reader.chat.ask(), False)], ""
    for i in rng.permutation(len(page.entries)):
        pieces += [(f"{ending}{page.entries[i].key} ", False), (page.entries[i].value, True)]
        ending = "\n"
    return pieces


def _encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    return [one.ids for one in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]


def _spelled(
    tokens: list[int], rng: np.random.Generator, share: float, tokenizer: PreTrainedTokenizerFast
) -> list[int]:
    """Tokens of the same text, some of several characters cut into tokens of one."""
    found = []
    for token in tokens:
        characters = tokenizer.decode([token])
        cut = len(characters) > 1 and token not in tokenizer.all_special_ids and rng.random() < share
        found += [ids[0] for ids in _encode(tokenizer, list(characters))] if cut else [token]
    return found


def _suffixes(
    pieces: Sequence[Pieces],
    hinted: Sequence[bool],
    reader: Reader,
    tokenizer: PreTrainedTokenizerFast,
    spelling: tuple[np.random.Generator, float] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, targets and answer numbers of `Batch` from the text pieces of its rows.

    The questions of a hinted row get the answer's first token as target of their last token already: where a
    chat format puts many tokens between question and answer, the look-up is then learned first and carried
    over to the answer. `spelling` has a share of the answers' tokens cut into characters.
    """
    ids = iter(_encode(tokenizer, [text for row in pieces for text, _ in row]))
    between = len(_encode(tokenizer, [reader.chat.ask()])[0])
    tokens, numbers, hints = [[] for _ in pieces], [[] for _ in pieces], []
    number = 0
    for i, row in enumerate(pieces):
        for _, is_answer in row:
            piece = next(ids)
            if is_answer and spelling:
                piece = _spelled(piece, *spelling, tokenizer)
            if is_answer and hinted[i]:
                hints.append((i, len(tokens[i]) - between - 1, piece[0], number))
            tokens[i] += piece
            numbers[i] += [number if is_answer else -1] * len(piece)
            number += 1
    suffix, answers = (
        pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)
        for rows, padding in ((tokens, tokenizer.pad_token_id), (numbers, -1))
    )
    # Position t predicts token t + 1; the last position predicts nothing.
    answers = F.pad(answers[:, 1:], (0, 1), value=-1)
    targets = F.pad(suffix[:, 1:], (0, 1), value=IGNORE).masked_fill(answers < 0, IGNORE)
    for i, position, first, answer in hints:
        targets[i, position], answers[i, position] = first, answer
    return suffix, targets, answers
