"""Where heads look while a model writes one word, as attention over the image and as a sheet of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from transformers import PreTrainedModel

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.anchors.record import AnchorSample
from sparsemm_eval.heads.figures.plots import BLUE, new_figure, save_figure
from sparsemm_eval.heads.scores.table import Head, HeadScores
from sparsemm_eval.heads.scoring.answers import encode_prompts, generated_answers, join
from sparsemm_eval.heads.scoring.probe import attention_rows
from sparsemm_eval.model.image_tokens import Box
from sparsemm_eval.model.images import rgb_image

COLUMNS = 3  # panels side by side


@dataclass(frozen=True, eq=False)
class WordAttention:
    """Attention over an image while a word is written.

    ``maps``, float32 [L, H, rows, columns], is the attention on the cells of the full-resolution grid,
    averaged over the positions that predict the word's tokens.
    """

    image: Image
    answer: str
    word: str
    maps: torch.Tensor
    area: Box  # what the grid covers, in image pixels; can reach over the image's edges


def word_attention(
    model: PreTrainedModel,
    processor: Any,
    image: Image,
    question: str,
    word: str | None = None,
    max_new_tokens: int = 512,
) -> WordAttention:
    """Let a model answer a question about an image and note where its heads look while it writes a word.

    The word is a part of the answer, its first occurrence; None: the answer's first word.

    Raises
    ------
    ConfigError
        If the answer does not hold the word, or is empty, or the model sees nothing of the image.
    """
    sample = AnchorSample("figure", rgb_image(image), question, "", ())
    inputs = encode_prompts(model, processor, [sample])
    [tokens] = generated_answers(model, inputs, max_new_tokens)
    answer = processor.tokenizer.decode(tokens)
    word = word or next(iter(answer.split()), "")
    if not word or word not in answer:
        raise ConfigError("word", word, f"a part of the model's answer, which is {answer!r}")
    sequences = join(inputs, [tokens], processor.tokenizer.pad_token_id or 0)
    prompt = sequences.prompts[0]
    places = [len(prompt) + index - 1 for index in _tokens_of(processor.tokenizer, tokens, answer, word)]
    rows = attention_rows(model, sequences.inputs, torch.tensor([places], device=model.device))
    layout, positions = sequences.shown_tokens(model, processor, 0, sample)
    grid = layout.grid
    cells = [grid.first + row * grid.stride + c for row in range(grid.rows) for c in range(grid.columns)]
    if not cells:
        size = f"{image.width}x{image.height}"
        raise ConfigError("image", size, "one that is not so narrow that the model sees nothing of it")
    seen = rows[:, 0].mean(2).cpu()[..., positions[cells]]  # [L, H, cells]
    edges = zip((0, 0, grid.columns, grid.rows), grid.offset * 2, grid.scale * 2, strict=True)
    area = tuple(float((cell - offset) / scale) for cell, offset, scale in edges)
    maps = seen.view(*seen.shape[:2], grid.rows, grid.columns)
    return WordAttention(sample.image, answer, word, maps, area)


def _tokens_of(tokenizer: Any, tokens: list[int], answer: str, word: str) -> list[int]:
    """Indices of the tokens that write the first occurrence of a word."""
    # The length of the first n tokens' text is where the n-th token ends, whatever the tokenizer does with
    # blanks.
    ends = [len(tokenizer.decode(tokens[: count + 1])) for count in range(len(tokens))]
    start = answer.index(word)
    stop = start + len(word)
    return [i for i, end in enumerate(ends) if end > start and (ends[i - 1] if i else 0) < stop]


def chosen_heads(scores: HeadScores, best: int, worst: int) -> list[Head]:
    """The best heads, with the best one first, and then the worst heads, with the worst one last."""
    order = scores.best_heads(scores.table.numel())
    return [*order[:best], *order[len(order) - worst :]]


def save_sheet(
    seen: WordAttention,
    scores: HeadScores,
    heads: Sequence[Head],
    path: str | Path,
    marks: Sequence[Box] = (),
) -> None:
    """Draw one panel per head: the image with the head's attention over it.

    Each panel has its own scale, from no attention to the head's strongest cell; the title says how much of
    the head's attention is on the image at all. ``marks`` are places to draw a frame around, where it is
    known what the word should be read from.

    Raises
    ------
    HeadScoreError, ConfigError
        If the scores are another model's, or the picture cannot be written.
    """
    scores.check_fits(*seen.maps.shape[:2])
    rows = -(-len(heads) // COLUMNS)
    height = seen.image.height / seen.image.width
    figure = new_figure(path, width=3.2 * COLUMNS, height=(3.1 * height + 0.45) * rows + 0.3)
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for panel in panels:
        panel.set_axis_off()
    for panel, head in zip(panels, heads, strict=False):
        _draw(panel, seen, head, float(scores.table[head] / scores.table.sum()))
        for left, top, right, bottom in marks:
            corners = [left, right, right, left, left], [top, top, bottom, bottom, top]
            panel.plot(*corners, color=BLUE, linewidth=1)
    figure.suptitle(f"attention while writing {seen.word!r}", fontsize=10)
    save_figure(figure, path)


def _draw(panel: Any, seen: WordAttention, head: Head, share: float) -> None:
    heat = seen.maps[head]
    left, top, right, bottom = seen.area
    panel.imshow(seen.image)
    panel.imshow(
        heat.numpy(),
        cmap="autumn_r",
        alpha=(0.65 * heat / heat.max().clamp_min(1e-9)).numpy(),  # the text stays legible
        extent=(left, right, bottom, top),
        vmin=0,
    )
    # The grid can reach over the image's edges.
    panel.set_xlim(0, seen.image.width)
    panel.set_ylim(seen.image.height, 0)
    panel.set_title(
        f"layer {head[0]} head {head[1]}: {share:.1%} of the score\n{float(heat.sum()):.1%} on the image",
        fontsize=8,
    )
