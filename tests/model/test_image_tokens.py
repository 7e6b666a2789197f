"""Regions, held against what the model's vision part really does with a painted image."""

from __future__ import annotations

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sparsemm_eval.errors import ConfigError, UnsupportedError
from sparsemm_eval.model.families.base import image_positions
from sparsemm_eval.model.families.registry import family_of
from sparsemm_eval.model.image_tokens import ImageTokens, TokenGrid
from tests.heads.scoring.samples import processor_of
from tests.tiny_models import model_of

# width x height: exact pages, wide, tall, enlarged, shrunk, odd numbers, many tiles
LLAVA_SIZES = [(256, 128), (384, 256), (300, 100), (97, 211), (50, 90), (701, 503), (333, 1000), (640, 640)]
QWEN_SIZES = [(256, 128), (384, 256), (300, 140), (131, 211), (401, 303), (155, 500)]


@pytest.fixture(scope="module")
def blind_llava():
    """A LLaVA-NeXT whose patches do not see each other, so that a painted cell changes one feature."""
    model = copy.deepcopy(model_of("tiny-reader"))
    with torch.no_grad():
        for layer in model.model.vision_tower.modules():
            if hasattr(layer, "out_proj"):
                layer.out_proj.weight.zero_()
                layer.out_proj.bias.zero_()
    return model, processor_of("tiny-reader")


@pytest.fixture(scope="module")
def blind_qwen():
    model = copy.deepcopy(model_of("tiny-reader-qwen2vl"))
    with torch.no_grad():
        for block in model.model.visual.blocks:
            block.attn.proj.weight.zero_()
            block.attn.proj.bias.zero_()
    return model, processor_of("tiny-reader-qwen2vl")


def features(model, processor, pixels):
    """Image features in the order of the prompt's image tokens, and the grid."""
    inputs = processor.image_processor([Image.fromarray(pixels)], return_tensors="pt")
    with torch.no_grad():
        output = model.get_image_features(**inputs, return_dict=True).pooler_output
    grid = inputs.get("image_grid_thw")
    return output[0], None if grid is None else grid[0].tolist()


def painted(pixels, box):
    copied = pixels.copy()
    left, top, right, bottom = box
    copied[top:bottom, left:right] = 255 - copied[top:bottom, left:right]
    return copied


def inner_box(grid, row, column, scale_down):
    """Whole pixels inside one cell, so far from its edges that resampling does not reach over them."""
    edges = []
    for axis, cell in ((0, column), (1, row)):
        scale, offset = grid.scale[axis], grid.offset[axis]
        low, high = (cell - offset) / scale, (cell + 1 - offset) / scale
        margin = 0 if scale_down is None else Fraction(5, 2) * max(1, scale_down)
        edges.append((-(-(low + margin) // 1), (high - margin) // 1))
    return tuple(int(edge) for edge in (edges[0][0], edges[1][0], edges[0][1], edges[1][1]))


def check_every_cell(model, processor, size, cell):
    width, height = size
    pixels = np.random.default_rng(0).integers(60, 120, (height, width, 3), dtype=np.uint8)
    before, grid_thw = features(model, processor, pixels)
    tokens = family_of(model.config).image_tokens(model.config, width, height, grid_thw)
    grid = tokens.grid
    assert tokens.count == len(before)
    exact = grid.scale == (Fraction(1, cell), Fraction(1, cell))
    shrink = None if exact else float(max(1 / grid.scale[0], 1 / grid.scale[1])) / cell
    # corners, edges and a diagonal
    places = {(r * (grid.rows - 1) // 4, c * (grid.columns - 1) // 4) for r in range(5) for c in range(5)}
    checked = 0
    for row, column in sorted(places):
        box = inner_box(grid, row, column, shrink)
        if not (0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height):
            continue  # a border cell that is mostly padding
        after, _ = features(model, processor, painted(pixels, box))
        changed = ((after - before).abs().amax(1) > 1e-4).nonzero().flatten().tolist()
        assert [token for token in changed if token >= grid.first] == tokens.region(box)
        if tokens.base is not None:
            base = set(tokens.region(box, include_base=True)) - set(tokens.region(box))
            assert base <= set(changed)
        checked += 1
    assert checked >= 12


@pytest.mark.parametrize("size", LLAVA_SIZES)
def test_llava_cells(blind_llava, size):
    check_every_cell(*blind_llava, size, 16)


@pytest.mark.parametrize("size", QWEN_SIZES)
def test_qwen_cells(blind_qwen, size):
    check_every_cell(*blind_qwen, size, 16)


def test_llava_thumbnail(blind_llava):
    """A painted block that fills a thumbnail cell changes that cell most."""
    model, processor = blind_llava
    pixels = np.full((256, 384, 3), 100, np.uint8)
    before, _ = features(model, processor, pixels)
    tokens = family_of(model.config).image_tokens(model.config, 384, 256)
    for row, column in ((0, 0), (0, 7), (3, 4), (7, 0), (7, 7)):
        box = (column * 48, row * 32, column * 48 + 48, row * 32 + 32)
        after, _ = features(model, processor, painted(pixels, box))
        change = (after - before).abs().amax(1)[:64]
        assert [int(change.argmax())] == tokens.base.tokens(box) == [row * 8 + column]


@pytest.mark.parametrize("family", ["tiny-reader", "tiny-reader-mistral", "tiny-reader-qwen2vl"])
def test_positions_in_the_prompt(family):
    model, processor = model_of(family), processor_of(family)
    image = Image.new("RGB", (256, 128))
    content = [{"type": "image"}, {"type": "text", "text": "read all text"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    inputs = processor(images=[image], text=[text], return_tensors="pt")
    grid = inputs["image_grid_thw"][0].tolist() if "image_grid_thw" in inputs else None
    tokens = family_of(model.config).image_tokens(model.config, 256, 128, grid)
    positions = image_positions(model.config, inputs["input_ids"][0], tokens)
    placeholder = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    assert len(positions) == tokens.count == 128 + (0 if grid else 64 + 8)
    assert (inputs["input_ids"][0][positions] == placeholder).all()
    with pytest.raises(UnsupportedError, match=r"0 image tokens where .* exactly one image"):
        image_positions(model.config, torch.ones(5, dtype=torch.long), tokens)


sizes = st.tuples(st.integers(20, 3000), st.integers(20, 3000))


@settings(max_examples=200)
@given(sizes)
def test_llava_counts_equal_the_processors(size):
    """Token counts for any aspect ratio, as the processor counts placeholders."""
    model, processor = model_of("tiny-reader"), processor_of("tiny-reader")
    width, height = size
    count = processor._get_number_of_features(height, width, 128, 128) - 1  # the class token is dropped
    assert family_of(model.config).image_tokens(model.config, width, height).count == count


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_regions_equal_loops_over_cells(rows, columns, data):
    width, height = data.draw(st.integers(1, 900)), data.draw(st.integers(1, 900))
    grid = TokenGrid(5, columns + 1, rows, columns, (Fraction(columns, width), Fraction(rows, height)))
    x = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
    y = sorted(data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True)))
    box = (x[0], y[0], x[1], y[1])
    covered = [
        5 + row * (columns + 1) + column
        for row in range(rows)
        for column in range(columns)
        if column * width < box[2] * columns
        and (column + 1) * width > box[0] * columns
        and row * height < box[3] * rows
        and (row + 1) * height > box[1] * rows
    ]
    assert ImageTokens(width, height, 5 + rows * (columns + 1), grid).region(box) == covered != []


def positions_of(name, *sizes):
    config = model_of(name).config
    return family_of(config).image_tokens(config, *sizes)


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 0, 5), (0, 4, 5, 3), (0, 0, 257, 5), (0, 0, 5, 128.5)])
def test_wrong_boxes_are_refused(box):
    tokens = positions_of("tiny-reader", 256, 128)
    with pytest.raises(ConfigError, match=r"box=.*right <= 256"):
        tokens.region(box)


def test_other_models_are_refused():
    with pytest.raises(UnsupportedError, match=r"model_type='llama'.*llava_next, qwen2_vl"):
        positions_of("llama", 10, 10)
    with pytest.raises(UnsupportedError, match="still image"):
        positions_of("tiny-reader-qwen2vl", 10, 10, (2, 4, 4))
