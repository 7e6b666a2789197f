"""Where chosen heads look while a model writes one word: their attention over the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from transformers import PreTrainedModel

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.anchors.record import AnchorSample
from sparsemm_eval.heads.scoring.answers import encode_prompts, generated_answers, join
from sparsemm_eval.heads.scoring.probe import attention_rows
from sparsemm_eval.model.families.base import image_positions
from sparsemm_eval.model.families.registry import family_of
from sparsemm_eval.model.image_tokens import Box
from sparsemm_eval.model.images import rgb_image


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
        If the answer does not hold the word, or is empty.
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
    grids = sequences.inputs.get("image_grid_thw")
    grid_thw = None if grids is None else grids[0].tolist()
    layout = family_of(model.config).image_tokens(model.config, *image.size, grid_thw)
    positions, grid = image_positions(model.config, prompt, layout), layout.grid
    cells = [grid.first + row * grid.stride + c for row in range(grid.rows) for c in range(grid.columns)]
    seen = rows[:, 0].mean(2).cpu()[..., positions[cells]]  # [L, H, cells]
    edges = zip((0, 0, grid.columns, grid.rows), grid.offset * 2, grid.scale * 2, strict=True)
    area = tuple(float((cell - offset) / scale) for cell, offset, scale in edges)
    maps = seen.view(*seen.shape[:2], grid.rows, grid.columns)
    return WordAttention(sample.image, answer, word, maps, area)


def _tokens_of(tokenizer: Any, tokens: list[int], answer: str, word: str) -> list[int]:
    """Indices of the tokens that write the first occurrence of a word."""
    # what the first n tokens decode to says where the n-th ends, whatever the tokenizer does with blanks
    ends = [len(tokenizer.decode(tokens[: count + 1])) for count in range(len(tokens))]
    start = answer.index(word)
    stop = start + len(word)
    return [i for i, end in enumerate(ends) if end > start and (ends[i - 1] if i else 0) < stop]
