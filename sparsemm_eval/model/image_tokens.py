"""Regions: which image tokens cover a pixel box."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from sparsemm_eval.errors import ConfigError

Box = tuple[float, float, float, float]  # left, top, right, bottom in image pixels; right, bottom exclusive


@dataclass(frozen=True)
class TokenGrid:
    """A rectangle of image tokens in row-major order and how image pixels lie on it.

    Image pixel x has the cell coordinate ``x * scale[0] + offset[0]``; cell c spans c to c + 1. Everything is
    a fraction, so that no edge drifts however large the image is.

    Attributes
    ----------
    first : int
        Number of image tokens before cell (0, 0).
    stride : int
        Image tokens per row: the columns, and a newline token where the model has one.
    rows, columns : int
        Cells that have a token.
    scale, offset : tuple of Fraction
        In x and y; cells per image pixel, and cells.
    """

    first: int
    stride: int
    rows: int
    columns: int
    scale: tuple[Fraction, Fraction]
    offset: tuple[Fraction, Fraction] = (Fraction(0), Fraction(0))

    def cells(self, box: Box) -> tuple[range, range]:
        """Rows and columns of the cells that share an area with a box."""
        left, top, right, bottom = (
            Fraction(edge) * self.scale[i % 2] + self.offset[i % 2] for i, edge in enumerate(box)
        )
        return (
            range(max(math.floor(top), 0), min(math.ceil(bottom), self.rows)),
            range(max(math.floor(left), 0), min(math.ceil(right), self.columns)),
        )

    def tokens(self, box: Box) -> list[int]:
        """Indices among the image's tokens, ascending."""
        rows, columns = self.cells(box)
        return [self.first + row * self.stride + column for row in rows for column in columns]


@dataclass(frozen=True)
class ImageTokens:
    """All tokens of one image.

    Attributes
    ----------
    width, height : int
        Of the image in pixels, as its boxes count them.
    count : int
        Tokens the image takes in the prompt.
    grid : TokenGrid
        The tokens at full resolution.
    base : TokenGrid or None
        The tokens of the thumbnail, where the model sees one.
    """

    width: int
    height: int
    count: int
    grid: TokenGrid
    base: TokenGrid | None = None

    def region(self, box: Box, include_base: bool = False) -> list[int]:
        """Image tokens that cover a pixel box.

        Parameters
        ----------
        box : tuple of 4 numbers
            (left, top, right, bottom) in pixels; right and bottom exclusive.
        include_base : bool
            Whether thumbnail tokens count.

        Returns
        -------
        list of int
            Indices among the image's tokens, ascending. May be empty: models cut border cells off when they
            remove the padding of an image.

        Raises
        ------
        ConfigError
            If the box is empty or leaves the image.
        """
        left, top, right, bottom = box
        if not (0 <= left < right <= self.width and 0 <= top < bottom <= self.height):
            raise ConfigError(
                "box",
                tuple(box),
                f"0 <= left < right <= {self.width} and 0 <= top < bottom <= {self.height}",
            )
        thumbnail = self.base.tokens(box) if include_base and self.base else []
        return thumbnail + self.grid.tokens(box)
