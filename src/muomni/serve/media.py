"""Pictures and sounds that came within a request: base64 -> bytes -> decoded within the limits.

Nothing here opens a place that a request names: a medium is in the request, or it is refused.
"""

from __future__ import annotations

import base64
import binascii
import re

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from muomni.errors import DataError
from muomni.media import audio, image
from muomni.serve import errors
from muomni.serve.errors import invalid
from muomni.serve.settings import Limits

DATA_URL = re.compile(r"data:(?P<kind>[\w.+-]+/[\w.+-]+)(?:;[\w.+-]+=[^;,]*)*;base64,", re.ASCII)
SPACES = re.compile(r"\s+")


def picture(url: str, limits: Limits, param: str) -> Image:
    """The picture of a `data:` URL.

    Raises  ApiError: another URL, no base64, no picture, too many pixels.
    """
    head = DATA_URL.match(url[:256])
    if head is None:
        raise invalid(
            f"{param}: expected a data URL (data:image/png;base64,...): this server fetches no addresses and reads no files",
            param=param,
            code="invalid_image_url",
        )
    if not head["kind"].startswith("image/"):
        raise invalid(
            f"{param}: expected a picture, got {head['kind']}", param=param, code="invalid_image_url"
        )
    content = of_base64(url[head.end() :], param)
    try:
        return image.read(content, max_pixels=limits.pixels)
    except DataError as error:
        raise errors.of(error, param=param) from error


def sound(data: str, rate_hz: int, limits: Limits, param: str) -> NDArray[np.float32]:
    """The samples of a recording in base64; raises as `samples`."""
    return samples(of_base64(data, param), rate_hz, limits, param)


def samples(content: bytes, rate_hz: int, limits: Limits, param: str) -> NDArray[np.float32]:
    """Mono samples (S,) of a recording.

    Raises  ApiError: no sound, or a longer one than is allowed.
    """
    try:
        return audio.read(content, rate_hz, max_s=limits.sound_s, allow_silent=True)
    except DataError as error:
        raise errors.of(error, param=param) from error


def of_base64(data: str, param: str) -> bytes:
    """The bytes of base64, spaces and line ends allowed."""
    try:
        content = base64.b64decode(SPACES.sub("", data), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"{param}: expected base64", param=param, code="invalid_base64") from error
    if not content:
        raise invalid(f"{param}: holds no bytes", param=param, code="empty")
    return content
