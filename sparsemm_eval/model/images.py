"""The one image step: whatever a task or a user gives becomes an 8-bit RGB image, or is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from sparsemm_eval.errors import UnsupportedError

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_FLOAT = "F"
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


def rgb_image(given: Any) -> Image.Image:
    """Decode an image and bring it to RGB, 8 bits per channel.

    EXIF rotation is applied, transparency is put on white, palettes are resolved, 16-bit levels are scaled.

    Parameters
    ----------
    given : PIL.Image.Image, str or Path
        An image, or the path of an image file.

    Raises
    ------
    UnsupportedError
        For what is no image, and for modes without a known range: floats, and integers beyond 16 bits.
    OSError
        If a file cannot be read, or is truncated.
    """
    if isinstance(given, (str, Path)) and Path(given).suffix.lower() in Image.registered_extensions():
        given = Image.open(Path(given).expanduser())
    if not isinstance(given, Image.Image):
        raise UnsupportedError(f"{type(given).__name__} given as an image: only images can be read")
    with whole_images_only():
        given.load()  # Pillow reads lazily
    image = ImageOps.exif_transpose(given)
    if image.mode in _SIXTEEN_BITS:
        return _from_sixteen_bits(image).convert("RGB")
    if image.mode == _FLOAT:
        raise UnsupportedError(
            "an image of mode F (float): its range is not known, convert it to 8 bits in the task"
        )
    if image.has_transparency_data:
        # Pillow converts premultiplied modes only to their plain forms
        transparent = image.convert(_PREMULTIPLIED.get(image.mode, image.mode)).convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, transparent).convert("RGB")
    return image.convert("RGB")


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise UnsupportedError(
            f"an image of mode {image.mode} with values from {levels.min()} to {levels.max()}: grey levels "
            "of at most 16 bits can be read, convert it to 8 bits in the task"
        )
    return Image.fromarray((levels * 255 / 65535).round().astype(np.uint8))


@contextmanager
def whole_images_only() -> Iterator[None]:
    """A truncated image is an error, although some tasks of lmms-eval let Pillow fill the rest with grey."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
