from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from muomni.errors import DataError, ShapeError
from muomni.media import image


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces any size and holds next to nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def reason(content: bytes | Path, **options: int) -> str:
    with pytest.raises(DataError) as caught:
        image.read(content, **options)
    return caught.value.reason


@pytest.mark.parametrize("size", [(20_000, 20_000), (8_000, 8_000), (2_000_000, 100)])
def test_bombs_are_refused_by_their_header(size: tuple[int, int]) -> None:
    assert reason(png_header(*size)) == "too_large"


def test_the_limit_is_ours_to_set() -> None:
    content = encoded(Image.new("RGB", (100, 100)))
    assert reason(content, max_pixels=9_999) == "too_large"
    assert image.read(content, max_pixels=10_000).size == (100, 100)


def test_bytes_and_path_are_equal_and_1x1_works(tmp_path: Path) -> None:
    content = encoded(Image.new("RGB", (1, 1), (10, 20, 30)))
    (tmp_path / "a.png").write_bytes(content)
    for source in (content, tmp_path / "a.png", str(tmp_path / "a.png")):
        picture = image.read(source)
        assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGB", (1, 1), (10, 20, 30))


def test_alpha_is_laid_over_white() -> None:
    picture = image.read(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 0))))
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert image.read(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 128)))).getpixel((0, 0)) == (
        255,
        127,
        127,
    )
    assert image.read(encoded(Image.new("LA", (2, 2), (0, 0)))).getpixel((0, 0)) == (255, 255, 255)


def test_a_palette_with_a_transparent_colour() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putpixel((1, 0), 1)
    read = image.read(encoded(picture, transparency=0))
    assert read.getpixel((0, 0)) == (255, 255, 255)
    assert read.getpixel((1, 0)) == (0, 255, 0)


def test_rgb_with_a_transparent_colour() -> None:
    assert image.read(encoded(Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3))).getpixel(
        (0, 0)
    ) == (255, 255, 255)


def test_cmyk_jpeg() -> None:
    red = image.read(encoded(Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK"), "JPEG")).getpixel(
        (5, 5)
    )
    assert isinstance(red, tuple)
    assert red[0] > 240
    assert max(red[1:]) < 15


def test_16_bit_grey_keeps_its_shades() -> None:
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16)[None].repeat(4, 0)
    array = np.asarray(image.read(encoded(Image.fromarray(ramp))))
    assert np.array_equal(array[0, :, 0], np.arange(256))
    assert (array == array[..., :1]).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "YCbCr", "CMYK"])
def test_other_modes_become_rgb(mode: str) -> None:
    picture = Image.new("RGB", (4, 4), (0, 0, 0)).convert(mode)
    assert np.asarray(image.read(encoded(picture, "TIFF" if mode in ("YCbCr", "CMYK") else "PNG"))).shape == (
        4,
        4,
        3,
    )


def test_32_bit_and_float_greys_without_a_known_white_are_refused() -> None:
    assert reason(encoded(Image.fromarray(np.full((2, 2), 70_000, np.int32)), "TIFF")) == "undecodable"
    assert reason(encoded(Image.fromarray(np.full((2, 2), 0.5, np.float32)), "TIFF")) == "undecodable"


def test_exif_turns_the_picture() -> None:
    picture = Image.new("RGB", (4, 2), (0, 0, 0))
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn by 90 degrees clockwise
    read = image.read(encoded(picture, "PNG", exif=exif))
    assert read.size == (2, 4)
    assert read.getpixel((1, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_torn_files_are_undecodable(kind: str) -> None:
    content = encoded(
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)), kind
    )
    for share in (0.1, 0.5, 0.8):
        assert reason(content[: int(len(content) * share)]) == "undecodable"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_hostile_bytes_never_raise_anything_else() -> None:
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        content = encoded(Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)), kind)
        for _ in range(40):
            broken = bytearray(content)
            for position in rng.integers(0, len(broken), 6):
                broken[position] = rng.integers(0, 256)
            with contextlib.suppress(DataError):
                image.read(bytes(broken))


def test_missing_empty_and_text(tmp_path: Path) -> None:
    assert reason(tmp_path / "none.png") == "missing"
    assert reason(tmp_path) == "missing"
    assert reason(b"") == "empty"
    assert reason(b"<svg>not pixels</svg>") == "undecodable"


def test_squash_and_pad() -> None:
    wide = Image.new("RGB", (40, 10), (0, 0, 0))
    assert (image.to_array(wide, 20) == 0).all()
    padded = image.to_array(wide, 20, "pad")
    assert padded.shape == (20, 20, 3)
    assert padded.dtype == np.uint8
    assert (padded[8:12] == 0).all()
    assert (padded[:7] == 255).all()
    assert (padded[13:] == 255).all()
    assert image.to_array(Image.new("RGB", (1, 5000)), 16, "pad").shape == (16, 16, 3)


def test_pixels_have_channels_first_in_minus_one_to_one() -> None:
    array = np.zeros((2, 5, 4, 3), np.uint8)
    array[..., 0] = 255
    pixels = image.to_pixels(array)
    assert pixels.shape == (2, 3, 5, 4)
    assert pixels.dtype == torch.float32
    assert (pixels[:, 0] == 1).all()
    assert (pixels[:, 1:] == -1).all()
    assert torch.equal(image.to_pixels(torch.from_numpy(array[0])), pixels[0])


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)]
)
def test_pixels_from_anything_else_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ShapeError):
        image.to_pixels(wrong)


def test_formats_that_no_picture_of_ours_has_are_refused():
    """Pillow hands an EPS to Ghostscript, a program that runs what it is given."""
    with pytest.raises(DataError, match="expected a picture") as caught:
        image.read(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert caught.value.reason == "undecodable"


def test_a_file_over_the_limit_is_refused_unread(tmp_path):
    with (tmp_path / "big.png").open("wb") as stream:
        stream.truncate(image.MAX_BYTES + 1)
    with pytest.raises(DataError) as caught:
        image.read(tmp_path / "big.png")
    assert caught.value.reason == "too_large"


def test_a_file_that_the_system_will_not_give_is_refused():
    with pytest.raises(DataError, match=r"/proc/self/mem"):
        image.read("/proc/self/mem")
