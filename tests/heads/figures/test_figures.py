"""Attention of single heads while a word is written."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from sparsemm_eval.errors import ConfigError, HeadScoreError
from sparsemm_eval.heads.anchors.record import AnchorSample
from sparsemm_eval.heads.figures.word_attention import chosen_heads, save_sheet, word_attention
from sparsemm_eval.heads.scores.table import HeadScores
from sparsemm_eval.heads.scoring.answers import encode_prompts, generated_answers, join
from tests.heads.scoring.samples import character_sample, processor_of
from tests.heads.scoring.test_batch_scores import eager
from tests.tiny_models import IMAGE_FAMILIES, model_of


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_maps_equal_eager_attention(family):
    model, processor = model_of(family), processor_of(family)
    image = character_sample(0, 2).image
    inputs = encode_prompts(model, processor, [AnchorSample("a", image, "read all text", "", ())])
    [tokens] = generated_answers(model, inputs, 8)
    pieces = [processor.tokenizer.decode([token]) for token in tokens]
    number = next(i for i in range(2, 7) if "".join(pieces).index(pieces[i]) == len("".join(pieces[:i])))
    seen = word_attention(model, processor, image, "read all text", pieces[number], max_new_tokens=8)
    assert seen.answer == "".join(pieces)
    assert seen.area == (0, 0, *image.size)
    rows, columns = image.height // 16, image.width // 16
    assert seen.maps.shape[2:] == (rows, columns)
    sequences = join(inputs, [tokens], 0)
    with eager(model), torch.no_grad():
        attentions = model(**sequences.inputs, use_cache=False, output_attentions=True).attentions
    prompt = sequences.prompts[0]
    first = int((prompt == processor.tokenizer.convert_tokens_to_ids(processor.image_token)).nonzero()[0])
    first, stride = (first, columns) if "qwen" in family else (first + 64, columns + 1)
    for layer, head in ((0, 0), (3, 5), (5, 6)):
        row = attentions[layer][0, head, len(prompt) + number - 1]
        expected = [[float(row[first + r * stride + c]) for c in range(columns)] for r in range(rows)]
        torch.testing.assert_close(seen.maps[layer, head], torch.tensor(expected), atol=1e-5, rtol=1e-3)


def test_the_first_word_is_the_default_and_a_missing_one_is_an_error():
    model, processor = model_of("tiny-reader"), processor_of("tiny-reader")
    image = Image.new("L", (300, 100), 77)
    seen = word_attention(model, processor, image, "read", max_new_tokens=8)
    assert seen.word == seen.answer.split()[0]
    left, top, right, bottom = seen.area
    assert left <= 0 < 300 <= right
    assert abs(top) < 16 > abs(bottom - 100)
    with pytest.raises(ConfigError, match="part of the model's answer"):
        word_attention(model, processor, image, "read", "no such word", max_new_tokens=8)


def test_an_image_of_which_the_model_sees_nothing_is_refused():
    model, processor = model_of("tiny-reader"), processor_of("tiny-reader")
    with pytest.raises(ConfigError, match="image='20000x1'"):
        word_attention(model, processor, Image.new("L", (20000, 1)), "read", max_new_tokens=2)


def test_sheet(tmp_path):
    model, processor = model_of("tiny-reader"), processor_of("tiny-reader")
    seen = word_attention(model, processor, character_sample(0, 0).image, "read", max_new_tokens=6)
    scores = HeadScores(torch.arange(48.0).view(6, 8))
    heads = chosen_heads(scores, best=2, worst=2)
    assert heads == [(5, 7), (5, 6), (0, 1), (0, 0)]
    save_sheet(seen, scores, heads, tmp_path / "sheet.png")
    assert min(Image.open(tmp_path / "sheet.png").size) > 300
    with pytest.raises(HeadScoreError, match="made for this model"):
        save_sheet(seen, HeadScores(torch.ones(2, 2)), heads, tmp_path / "sheet.png")
    with pytest.raises(ConfigError, match=r"\.png, \.svg"):
        save_sheet(seen, scores, heads, tmp_path / "sheet.gif")
