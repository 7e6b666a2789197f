"""Image tokens of LLaVA-NeXT: a thumbnail, then full-resolution tiles without padding, row by row."""

from __future__ import annotations

import math
from fractions import Fraction

from transformers import PreTrainedConfig
from transformers.image_processing_utils import select_best_resolution

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.model.image_tokens import ImageTokens, TokenGrid


def llava_next_tokens(config: PreTrainedConfig, width: int, height: int, grid_thw: object) -> ImageTokens:
    """Where the tokens of an image of ``width`` x ``height`` pixels lie.

    The image is scaled to fit the best of the model's resolutions, padded evenly, cut into tiles and encoded;
    the model then drops rows or columns of features that are padding, by an integer rule of its own, and puts
    a newline token behind each row.

    Raises
    ------
    UnsupportedError
        If the vision tower's tiles are no whole number of patches, or keep their class token.
    """
    tile, patch = config.vision_config.image_size, config.vision_config.patch_size
    if tile % patch or config.vision_feature_select_strategy != "default":
        raise UnsupportedError(
            f"tiles of {tile} pixels with patches of {patch} and vision_feature_select_strategy="
            f"{config.vision_feature_select_strategy!r}: supported are whole patches and 'default'"
        )
    target_height, target_width = select_best_resolution((height, width), config.image_grid_pinpoints)
    scaled_height, scaled_width = _fit(height, width, target_height, target_width)
    top, left = (target_height - scaled_height) // 2, (target_width - scaled_width) // 2
    rows, columns = target_height // tile * (tile // patch), target_width // tile * (tile // patch)
    cut_rows, cut_columns = _padding_cells(height, width, rows, columns)
    side = tile // patch
    grid = TokenGrid(
        first=side * side,
        stride=columns - 2 * cut_columns + 1,
        rows=rows - 2 * cut_rows,
        columns=columns - 2 * cut_columns,
        scale=(Fraction(scaled_width, width * patch), Fraction(scaled_height, height * patch)),
        offset=(Fraction(left, patch) - cut_columns, Fraction(top, patch) - cut_rows),
    )
    base = TokenGrid(0, side, side, side, (Fraction(side, width), Fraction(side, height)))
    return ImageTokens(width, height, grid.first + grid.rows * grid.stride, grid, base)


def _fit(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """Size of the scaled image inside the target, rounded as the image processor does."""
    scale_x, scale_y = target_width / width, target_height / height
    if scale_x < scale_y:
        return min(math.ceil(height * scale_x), target_height), target_width
    return target_height, min(math.ceil(width * scale_y), target_width)


def _padding_cells(height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of features that the model drops on each side, rounded as it does."""
    if width / height > columns / rows:
        return (rows - int(round(height * (columns / width), 7))) // 2, 0
    return 0, (columns - int(round(width * (rows / height), 7))) // 2
