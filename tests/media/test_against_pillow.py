"""Pictures beside Pillow's own way of making them RGB: the same pixels, or a refusal."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from muomni.errors import DataError
from muomni.media import image


def noise(mode: str = "RGB", size: tuple[int, int] = (37, 23), seed: int = 0) -> Image.Image:
    picture = Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    )
    return picture.convert(mode)


def encoded(picture: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def by_pillow(content: bytes) -> np.ndarray:
    """Upright, over white."""
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        upright = ImageOps.exif_transpose(picture)
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(upright.convert("RGB"))


OPAQUE = [("PNG", mode) for mode in ("1", "L", "P", "RGB")] + [
    ("JPEG", mode) for mode in ("L", "RGB", "CMYK")
]
OPAQUE += [("TIFF", mode) for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB")] + [
    ("BMP", mode) for mode in ("1", "L", "P", "RGB")
]
OPAQUE += [
    ("GIF", "P"),
    ("GIF", "L"),
    ("WEBP", "RGB"),
    ("PPM", "L"),
    ("PPM", "RGB"),
    ("PPM", "1"),
    ("JPEG2000", "RGB"),
    ("JPEG2000", "L"),
]
CLEAR = [
    ("PNG", "LA"),
    ("PNG", "RGBA"),
    ("WEBP", "RGBA"),
    ("TIFF", "RGBA"),
    ("TIFF", "LA"),
    ("JPEG2000", "RGBA"),
    ("GIF", "RGBA"),
]
avif = pytest.mark.skipif("AVIF" not in image.FORMATS, reason="this Pillow reads no AVIF")


@pytest.mark.parametrize(
    ("form", "mode"),
    [*OPAQUE, *CLEAR, pytest.param("AVIF", "RGB", marks=avif), pytest.param("AVIF", "RGBA", marks=avif)],
)
def test_modes_and_formats(form: str, mode: str) -> None:
    picture = noise("RGB")
    if mode.endswith("A"):
        picture.putalpha(Image.fromarray(np.random.default_rng(1).integers(0, 256, (23, 37), dtype=np.uint8)))
    content = encoded(picture.convert(mode), form)
    assert np.array_equal(np.asarray(image.read(content)), by_pillow(content))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(noise(), form, exif=exif)
    read = image.read(content)
    assert np.array_equal(np.asarray(read), by_pillow(content))
    assert read.size == ((37, 23) if orientation < 5 else (23, 37))


def test_a_damaged_exif_block_turns_nothing() -> None:
    content = encoded(noise(), "JPEG", exif=b"Exif\0\0" + b"garbage that is no TIFF")
    assert image.read(content).size == (37, 23)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_several(form: str) -> None:
    frames = [noise(seed=seed) for seed in range(3)]
    options = {"lossless": True} if form == "WEBP" else {}
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(np.asarray(image.read(content)), by_pillow(content))


def test_16_bits_of_grey_are_scaled_where_pillow_clips() -> None:
    ramp = np.linspace(0, 65_535, 400).astype(np.uint16).reshape(20, 20)
    for form in ("PNG", "TIFF"):
        read = np.asarray(image.read(encoded(Image.fromarray(ramp), form)))[..., 0]
        assert np.abs(read.astype(float) - ramp / 257).max() <= 0.5


def words(kind: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    if kind == "one of 3 MB, compressed":
        info.add_text("workflow", "x" * 3_000_000, zip=True)
    elif kind == "one of 3 MB, international":
        info.add_itxt("workflow", "x" * 3_000_000, zip=True)
    elif kind == "one of 3 MB, plain":
        info.add_text("workflow", "x" * 3_000_000)
    else:
        for number in range(70):
            info.add_text(f"note{number}", "x" * 1_000_000, zip=True)
    return info


@pytest.mark.parametrize(
    "kind", ["one of 3 MB, compressed", "one of 3 MB, international", "one of 3 MB, plain", "70 of 1 MB"]
)
def test_a_png_with_long_texts_is_read(kind: str) -> None:
    """Picture generators write their whole settings there; Pillow stops at 1 MB of one and 64 MB of all."""
    content = encoded(noise(), "PNG", pnginfo=words(kind))
    assert np.array_equal(np.asarray(image.read(content)), np.asarray(noise()))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert image.read(encoded(noise(), "PNG", pnginfo=words(kind), exif=exif)).size == (23, 37)


def test_a_png_with_a_long_colour_profile_is_read() -> None:
    assert image.read(encoded(noise(), "PNG", icc_profile=bytes(3_000_000))).size == (37, 23)


def test_a_torn_png_with_long_texts_is_refused() -> None:
    content = encoded(noise(), "PNG", pnginfo=words("one of 3 MB, compressed"))
    with pytest.raises(DataError, match="not a readable picture"):
        image.read(content[: len(content) // 2])


def test_random_damage_gives_pillows_pixels_or_a_refusal() -> None:
    rng = np.random.default_rng(0)
    for form, mode in (
        ("PNG", "RGB"),
        ("PNG", "P"),
        ("JPEG", "RGB"),
        ("GIF", "P"),
        ("WEBP", "RGB"),
        ("TIFF", "RGB"),
        ("BMP", "RGB"),
    ):
        whole = encoded(noise(mode), form)
        for _ in range(40):
            content = bytearray(whole)
            for place in rng.integers(0, len(content), rng.integers(1, 4)):
                content[place] = rng.integers(0, 256)
            try:
                ours = np.asarray(image.read(bytes(content)))
            except DataError:
                continue
            assert np.array_equal(ours, by_pillow(bytes(content)))
