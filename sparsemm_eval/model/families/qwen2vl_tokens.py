"""Image tokens of Qwen2-VL: the resized image in cells of merged patches, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from transformers import PreTrainedConfig

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.model.image_tokens import ImageTokens, TokenGrid


def qwen2vl_tokens(
    config: PreTrainedConfig, width: int, height: int, grid_thw: Sequence[int] | None
) -> ImageTokens:
    """Where the tokens of an image of ``width`` x ``height`` pixels lie.

    The image is resized, not padded, so cells are fractions of the image. M-RoPE gives tokens other positions
    to rotate by; their order in the prompt stays row-major.

    Parameters
    ----------
    grid_thw : sequence of int
        Frames, patch rows and patch columns, as the image processor says.

    Raises
    ------
    UnsupportedError
        If there is no grid or it has several frames.
    """
    if grid_thw is None or int(grid_thw[0]) != 1:
        raise UnsupportedError(
            f"image_grid_thw={grid_thw}: expected the grid of a still image, (1, rows, columns)"
        )
    merge = config.vision_config.spatial_merge_size
    rows, columns = int(grid_thw[1]) // merge, int(grid_thw[2]) // merge
    scale = (Fraction(columns, width), Fraction(rows, height))
    return ImageTokens(width, height, rows * columns, TokenGrid(0, columns, rows, columns, scale))
