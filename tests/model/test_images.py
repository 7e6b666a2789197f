"""The image step: modes, transparency, rotation, bit depths, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.model.images import rgb_image


def gradient(high, dtype):
    return np.linspace(0, high, 256).round().reshape(16, 16).astype(dtype)


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "RGBA", "LA", "PA", "La", "RGBa"]
)
def test_every_mode_becomes_rgb_and_shows_the_same(mode):
    plain = Image.fromarray(np.full((8, 8, 3), 128, np.uint8))
    plain.paste((0, 0, 0), (0, 0, 4, 8))
    through = {"P": "RGB", "PA": "P", "La": "LA", "RGBa": "RGBA"}.get(mode, "RGB")
    other = plain.convert(through, palette=Image.Palette.ADAPTIVE)
    other = other.convert(mode, palette=Image.Palette.ADAPTIVE) if mode == "P" else other.convert(mode)
    found = pixels(rgb_image(other))
    assert found.shape == (8, 8, 3)
    assert (found[:, :4] < 10).all()
    if mode != "1":
        assert (abs(found[:, 4:].astype(int) - 128) < 6).all()


def test_transparency_is_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 255, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    found = pixels(rgb_image(image))
    assert found[0, 0].tolist() == [0, 0, 255]
    assert found[0, 1].tolist() == [127, 127, 127]
    assert (found[1:] == 255).all()


def test_a_transparent_palette_colour_is_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=0)
    assert pixels(rgb_image(str(tmp_path / "p.png"))).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_another_palette_is_another_image():
    one, other = Image.new("P", (2, 2)), Image.new("P", (2, 2))
    one.putpalette([200, 0, 0])
    other.putpalette([0, 0, 200])
    assert one.tobytes() == other.tobytes()
    assert rgb_image(one).tobytes() != rgb_image(other).tobytes()


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_are_scaled(mode):
    image = Image.fromarray(gradient(65535, np.uint16))
    image = (
        image
        if mode == "I;16"
        else image.convert("I")
        if mode == "I"
        else image.convert("I").convert("I;16B")
    )
    found = pixels(rgb_image(image))[..., 0]
    assert found.min() == 0
    assert found.max() == 255
    assert (abs(found.astype(int) - gradient(255, np.int64)) <= 1).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(gradient(1, np.float32)), "mode F"),
        (Image.fromarray(gradient(70000, np.int32)), "70000"),
        (b"png", "bytes given as an image"),
        (3, "int given as an image"),
        ("clip.mp4", "str given as an image"),
    ],
)
def test_what_has_no_known_range_is_refused_by_name(image, message):
    with pytest.raises(UnsupportedError, match=message):
        rgb_image(image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_is_applied_to_files_and_to_images(tmp_path, orientation):
    upright = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # of what is stored, so that turning by 270 brings it upright
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(turns[orientation]) if orientation in turns else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    expected = pixels(upright.convert("RGB")).tolist()
    assert pixels(rgb_image(tmp_path / "turned.png")).tolist() == expected
    with Image.open(tmp_path / "turned.png") as image:
        once = rgb_image(image)
    assert pixels(once).tolist() == pixels(rgb_image(once)).tolist() == expected


def test_a_truncated_file_is_an_error_whatever_others_allow(tmp_path, monkeypatch):
    from PIL import ImageFile

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(OSError, match="truncated"):
        rgb_image(tmp_path / "a.png")
    assert ImageFile.LOAD_TRUNCATED_IMAGES
