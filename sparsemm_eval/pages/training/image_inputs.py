"""Fast path from page pixels to model inputs, equal to the real image processors for whole pages.

The processors spend milliseconds per image on choices that are settled for pages (size known, no padding,
grey levels only); here a batch of equal-sized pages is turned into tensors at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sparsemm_eval.pages.drawing.glyphs import CELL
from sparsemm_eval.pages.readers.family import PATCH, TILE


@dataclass(frozen=True)
class ImagePath:
    """How pages become image features of one model type.

    Attributes
    ----------
    inputs : callable
        (uint8 tensor [B, height, width]) -> dict of model inputs, float32 pixels.
    cells : callable
        (rows, columns) -> int64 tensor [rows, columns], index of each cell's image feature.
    count : callable
        (rows, columns) -> number of image features of a page.
    positions : callable
        (prefix length, rows, columns, suffix length) -> position ids of the whole sequence, or None where
        the model counts by itself.
    """

    inputs: Callable
    cells: Callable
    count: Callable
    positions: Callable


def _normalise(pixels):
    """Grey levels 0..255 -> -1..1, as mean 0.5 and deviation 0.5 do."""
    return (pixels.float() / 255 - 0.5) / 0.5


def _llava_inputs(pixels):
    from torchvision.transforms.v2.functional import InterpolationMode, resize

    batch, height, width = pixels.shape
    tiles_down, tiles_across = height // TILE, width // TILE
    tiles = pixels.reshape(batch, tiles_down, TILE, tiles_across, TILE).transpose(2, 3)
    tiles = tiles.reshape(batch, tiles_down * tiles_across, TILE, TILE)
    thumbnail = resize(pixels[:, None], [TILE, TILE], interpolation=InterpolationMode.BICUBIC, antialias=True)
    values = _normalise(torch.cat([thumbnail, tiles], 1))
    return {
        "pixel_values": values[:, :, None].expand(-1, -1, 3, -1, -1),
        "image_sizes": torch.tensor([[height, width]] * batch),
    }


def _llava_cells(rows, columns):
    thumbnail = (TILE // PATCH) ** 2
    # One newline feature follows each row.
    return thumbnail + torch.arange(rows)[:, None] * (columns + 1) + torch.arange(columns)


def _qwen2vl_inputs(pixels):
    batch, height, width = pixels.shape
    rows, columns, half = height // CELL, width // CELL, CELL // 2
    patches = _normalise(pixels).reshape(batch, rows, 2, half, columns, 2, half).permute(0, 1, 4, 2, 5, 3, 6)
    # Three equal colours and two equal frames.
    patches = patches.reshape(-1, 1, half * half).expand(-1, 6, -1).reshape(-1, 6 * half * half)
    return {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, 2 * rows, 2 * columns]] * batch)}


def _qwen2vl_positions(prefix, rows, columns, suffix):
    before = torch.arange(prefix).expand(3, -1)
    grid = torch.stack(
        torch.meshgrid(torch.arange(1), torch.arange(rows), torch.arange(columns), indexing="ij")
    )
    after = torch.arange(suffix).expand(3, -1) + prefix + max(rows, columns)
    return torch.cat([before, grid.reshape(3, -1) + prefix, after], 1)


IMAGE_PATHS = {
    "llava_next": ImagePath(
        inputs=_llava_inputs,
        cells=_llava_cells,
        count=lambda rows, columns: (TILE // PATCH) ** 2 + rows * (columns + 1),
        positions=lambda prefix, rows, columns, suffix: None,
    ),
    "qwen2_vl": ImagePath(
        inputs=_qwen2vl_inputs,
        cells=lambda rows, columns: torch.arange(rows * columns).reshape(rows, columns),
        count=lambda rows, columns: rows * columns,
        positions=_qwen2vl_positions,
    ),
}


def image_path(model):
    """The fast path of a model.

    Raises
    ------
    KeyError
        If its model type has none.
    """
    kind = model.config.model_type
    if kind not in IMAGE_PATHS:
        raise KeyError(f"model_type={kind!r} has no fast path; use one of {sorted(IMAGE_PATHS)}")
    return IMAGE_PATHS[kind]
