"""Pictures to upright RGB and to pixels; a picture that would fill the memory is refused by its header."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from muomni.errors import DataError, ShapeError
from muomni.files import write_bytes
from muomni.media import foreign

if TYPE_CHECKING:
    from torch import Tensor

WHITE = (255, 255, 255)
AVIF = ("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()  # from Pillow 11.3 on
FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "GIF",
    "BMP",
    "DIB",
    "TIFF",
    "PPM",
    "JPEG2000",
    *AVIF,
)  # Pillow knows forty; one starts Ghostscript
MAX_BYTES = 256 * 2**20
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_WORDS = frozenset(
    {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}
)  # chunks that change no pixel here, and that Pillow limits


def read(path_or_bytes: str | Path | bytes, *, max_pixels: int = 50_000_000) -> Image.Image:
    """A picture as upright 8-bit RGB: alpha laid over white, palette, CMYK and 16-bit grey converted, EXIF
    orientation applied.

    Animations give their first frame.
    Raises  DataError: missing, empty, undecodable (torn files and other FORMATS too), too_large (by the size
            or the header, before any pixel is decoded).
    """
    return read_with_format(path_or_bytes, max_pixels=max_pixels)[0]


def read_with_format(
    path_or_bytes: str | Path | bytes, *, max_pixels: int = 50_000_000, name: str | None = None
) -> tuple[Image.Image, str]:
    """As `read`, and the format that the file has; messages call it `name`."""
    name = name or ("picture in memory" if isinstance(path_or_bytes, bytes) else str(path_or_bytes))
    content = path_or_bytes if isinstance(path_or_bytes, bytes) else _bytes(Path(path_or_bytes))
    if not content:
        raise DataError("empty", f"{name}: no bytes")
    try:
        try:
            return _decoded(content, name, max_pixels)
        except ValueError as error:
            if "MAX_TEXT" not in str(error) or not content.startswith(PNG_START):
                raise
            return _decoded(
                _without_words(content), name, max_pixels
            )  # megabytes of text, as picture generators write them
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError("too_large", f"{name}: {error}", hint="shrink it") from error
    except UnidentifiedImageError as error:
        foreign_kind = foreign.explain(content) or foreign.picture(content)
        got = foreign_kind.what if foreign_kind else f"{content[:8]!r}..."
        raise DataError(
            "undecodable",
            f"{name}: expected a picture ({', '.join(FORMATS)}), got {got}",
            hint=foreign_kind.hint if foreign_kind else "",
        ) from error
    except Exception as error:  # Pillow's decoders let anything through on hostile bytes: SyntaxError, struct.error, IndexError ...
        raise DataError(
            "undecodable", f"{name}: not a readable picture: {error}", hint="make the file anew"
        ) from error


def _decoded(content: bytes, name: str, max_pixels: int) -> tuple[Image.Image, str]:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", Image.DecompressionBombWarning
        )  # max_pixels is the limit, not Pillow's
        picture: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    if picture.width * picture.height > max_pixels:
        what = f"{name}: {picture.width} x {picture.height} pixels, at most {max_pixels} allowed"
        raise DataError("too_large", what, hint="shrink it")
    form = picture.format or ""
    picture.load()
    with contextlib.suppress(
        SyntaxError, ValueError, KeyError, TypeError, struct.error
    ):  # a damaged EXIF block turns nothing
        ImageOps.exif_transpose(picture, in_place=True)
    return _rgb(picture), form


def _without_words(content: bytes) -> bytes:
    """A PNG without its texts and its colour profile."""
    place, kept = len(PNG_START), [PNG_START]
    while place + 8 <= len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        if content[place + 4 : place + 8] not in PNG_WORDS:
            kept.append(content[place:end])
        place = end
    return b"".join(kept)


def to_array(
    picture: Image.Image,
    size: int,
    fit: Literal["squash", "pad"] = "squash",
    *,
    resample: Literal["bicubic", "bilinear"] = "bicubic",
) -> NDArray[np.uint8]:
    """Pixels (size, size, 3) uint8; "squash" stretches to the square, "pad" keeps the aspect and centres on
    white."""
    rgb, how = picture.convert("RGB"), Image.Resampling[resample.upper()]
    if fit == "squash":
        return np.array(rgb.resize((size, size), how))
    scale = size / max(rgb.size)
    width, height = (max(1, round(side * scale)) for side in rgb.size)
    square = Image.new("RGB", (size, size), WHITE)
    square.paste(rgb.resize((width, height), how), ((size - width) // 2, (size - height) // 2))
    return np.array(square)


def to_pixels(array: NDArray[np.uint8] | Tensor) -> Tensor:
    """uint8 (..., H, W, 3), numpy or torch, to float32 (..., 3, H, W) in [-1, 1].

    Raises  ShapeError if not uint8 with three channels last: floats would be scaled twice.
    """
    import torch  # whoever only looks at files need not wait for it

    pixels = torch.as_tensor(array)
    if pixels.dtype != torch.uint8 or pixels.ndim < 3 or pixels.shape[-1] != 3:
        raise ShapeError(
            f"to_pixels: expected uint8 (..., H, W, 3), got {pixels.dtype} {tuple(pixels.shape)}"
        )
    return pixels.movedim(-1, -3).float().div(127.5).sub(1.0).contiguous()


def write(path: str | Path, pixels_HW3: NDArray[np.uint8]) -> None:
    """Write a picture as a PNG file, whole or not at all.

    Raises  ShapeError for other than (H, W, 3) uint8.
    """
    if pixels_HW3.ndim != 3 or pixels_HW3.shape[2] != 3 or pixels_HW3.dtype != np.uint8:
        raise ShapeError(
            f"image.write: expected pixels (H, W, 3) uint8, got {pixels_HW3.shape} {pixels_HW3.dtype}"
        )
    stream = io.BytesIO()
    Image.fromarray(pixels_HW3).save(stream, "PNG", optimize=True)
    write_bytes(Path(path), stream.getvalue())


def _bytes(path: Path) -> bytes:
    if not os.path.isfile(path):
        raise DataError(
            "missing",
            f"{path}: no such picture",
            hint="paths in a manifest are relative to the manifest or its `root`",
        )
    try:
        if (size := os.path.getsize(path)) > MAX_BYTES:
            raise DataError(
                "too_large", f"{path}: {size} bytes, at most {MAX_BYTES} allowed", hint="shrink it"
            )
        return path.read_bytes()
    except OSError as error:
        raise DataError("undecodable", f"{path}: can't be read: {error.strerror}") from error


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey; "I" alone is 32 bits wide, but PNG fills 16 of them
        grey = np.asarray(picture).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"grey values {grey.min()} .. {grey.max()} do not fit 16 bits")
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ValueError("a floating-point picture does not say which value is white")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (*WHITE, 255)), rgba).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")
