"""Statistics of one picture or sound of a manifest: its properties, oddities, digest and perceptual
vector."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muomni import files
from muomni.data.check import near_duplicates
from muomni.data.sample import AudioPart, ImagePart, inline_bytes
from muomni.errors import DataError
from muomni.media import audio, image, stored
from muomni.media.decoders import TORN_S

MOST_BYTES = 64 << 20  # larger files are not held in memory
FULL_SCALE = 0.999
CLIPPED_SHARE = 1e-3  # of the samples; the peaks of a well-levelled recording may touch full scale
QUIET_PEAK = 0.01  # -40 dB of full scale
SHORT_S, LONG_S = 0.1, 30.0
END_SLACK_S = 0.05  # word times are rounded
TINY_PIXELS = 16
LONGEST_ASPECT = 5.0
BLANK_LEVELS = 1  # of 255: most difference of any two pixels
COMPARED_HZ, COMPARED_S = 8000, 30  # of two channels: so much, at about this rate
SILENT_SHARE = 1e-4  # of the power of the louder channel
CANCELLED = 0.1  # of the mean power is left in the mean of the channels
ONE_SOUND, DELAY_S = 0.3, 0.025  # least correlation of two microphones, at any delay between them
TURN_S, TURN_DB, TURN_SHARE = (
    0.05,
    6.0,
    0.1,
)  # of a conversation each voice is this much louder in its channel for so much of the time
EXTENSIONS = {
    ".wav": {"WAV", "WAVEX", "RF64"},
    ".flac": {"FLAC"},
    ".ogg": {"OGG"},
    ".opus": {"OGG"},
    ".mp3": {"MP3", "MPEG"},
    ".m4a": {"MP4"},
    ".mp4": {"MP4"},
    ".aac": {"AAC", "MP4"},
    ".wma": {"ASF"},
    ".amr": {"AMR"},
    ".webm": {"Matroska"},
    ".avif": {"AVIF"},
    ".png": {"PNG"},
    ".jpg": {"JPEG", "MPO"},
    ".jpeg": {"JPEG", "MPO"},
    ".webp": {"WEBP"},
    ".gif": {"GIF"},
    ".bmp": {"BMP", "DIB"},
    ".tif": {"TIFF"},
    ".tiff": {"TIFF"},
}
Oddity = tuple[str, str]  # reason, what


@dataclass(frozen=True)
class MediaStats:
    """A file or inline content, or a stretch of a sound."""

    name: str  # as people should read it
    kind: str  # its modality
    digest: str  # of the whole file's bytes
    start: float | None = None
    end: float | None = None
    channel: int | None = None
    seconds: float = 0.0
    rate_hz: int = 0
    channels: int = 0
    size: tuple[int, int] = (0, 0)
    oddities: list[Oddity] = field(default_factory=list)
    vector: near_duplicates.Vector | None = None

    @cached_property
    def key(self) -> tuple[str, float | None, float | None, int | None]:
        """The same for the same bytes, wherever they lie."""
        return self.digest, self.start, self.end, self.channel


def examine(part: ImagePart | AudioPart) -> MediaStats:
    """Decode the whole medium and look at it.

    Raises  DataError, as `media.audio.read` and `media.image.read` do.
    """
    content = inline_bytes(part.path)
    name = stored.shown(part.path)
    if content is None and not (
        isinstance(part, AudioPart) and (part.start is not None or part.end is not None)
    ):
        content = _content(part.path)  # once for all that looks at it
    source = content if content is not None else part.path
    return EXAMINED[part.type](part, source, name)


def _content(path: str) -> bytes | None:
    """A file's bytes; None for one that is large, or that its reader will refuse."""
    try:
        with open(path, "rb", buffering=0) as stream:
            if os.fstat(stream.fileno()).st_size <= MOST_BYTES:
                return stream.read()
    except (OSError, ValueError):
        pass
    return None


def _sound(part: AudioPart, source: str | bytes, name: str) -> MediaStats:
    decoded = audio.decode(
        source, start_s=part.start, end_s=part.end, channel=part.channel, name=name, keep_channels=True
    )
    wave_S, about = decoded.wave_S, decoded.info
    seconds = len(wave_S) / about.rate_hz
    odd = _wrong_extension(name, about.form)
    odd += _length(name, about, seconds if part.start is None and part.end is None else about.seconds)
    odd += _level(name, decoded)
    if seconds < SHORT_S:
        odd.append(("short_sound", f"{name}: expected at least {SHORT_S:g} s, got {seconds:.3f} s"))
    if seconds > LONG_S:
        odd.append(("long_sound", f"{name}: expected at most {LONG_S:g} s, got {seconds:.1f} s"))
    if part.end is not None and about.seconds and part.end > about.seconds + END_SLACK_S:
        odd.append(
            (
                "end_beyond",
                f"{name}: expected an end within the {about.seconds:.2f} s of the sound, got {part.end:g} s",
            )
        )
    if decoded.channels_SC is not None and (apart := _channels(decoded.channels_SC, about.rate_hz)):
        odd.append(
            ("channels_differ", f"{name}: expected channels of one sound, got {apart}; their mean is taken")
        )
    vector = near_duplicates.sound_vector(wave_S, about.rate_hz)
    window = part.start, part.end, part.channel
    shape = seconds, about.rate_hz, about.channels
    return MediaStats(name, part.type, _digest(source), *window, *shape, oddities=odd, vector=vector)


def _length(name: str, about: audio.Info, seconds: float) -> list[Oddity]:
    """What a file says of its length and does not keep, though all that is there was read."""
    if about.is_stream:
        return [
            (
                "unfilled_length",
                f"{name}: expected a length in the header, got a stream's placeholder; {seconds:.2f} s are there",
            )
        ]
    if about.is_cut:
        return [
            (
                "length_differs",
                f"{name}: expected a sound with its end, got one that breaks off; {seconds:.2f} s are there",
            )
        ]
    if about.frames is not None and about.said_s is not None and seconds > about.said_s + TORN_S:
        return [
            (
                "length_differs",
                f"{name}: expected the {about.said_s:.2f} s that the header announces, got {seconds:.2f} s",
            )
        ]
    if about.surplus > TORN_S * about.rate_hz:
        what = f"{name}: expected nothing after the {seconds:.2f} s that the header announces, got {about.surplus} bytes, which are not read"
        return [("length_differs", what)]
    return []


def _level(name: str, decoded: audio.Decoded) -> list[Oddity]:
    odd: list[Oddity] = []
    loud_S = np.abs(decoded.wave_S)
    peak, is_float = float(loud_S.max()), decoded.info.codec in ("FLOAT", "DOUBLE")
    if decoded.scale != 1.0:
        what = f"expected samples within 1, got a peak of {decoded.peak:.0f}; they are divided by {decoded.scale:.0f}"
        odd.append(("scaled", f"{name}: {what}"))
    elif is_float and decoded.peak > 1.0:
        odd.append(
            (
                "over_full_scale",
                f"{name}: expected samples within 1, got a peak of {decoded.peak:.2f}; they are left as they are",
            )
        )
    clipped = float(np.mean(loud_S >= FULL_SCALE * (max(1.0, peak) if is_float else 1.0)))
    if clipped > CLIPPED_SHARE:
        odd.append(("clipped", f"{name}: expected few samples at full scale, got {clipped:.1%}"))
    if peak < QUIET_PEAK:
        odd.append(("quiet", f"{name}: expected a peak of at least {QUIET_PEAK:g}, got {peak:.4f}"))
    return odd


def _channels(channels_SC: NDArray[np.float32], rate_hz: int) -> str:
    """What sets a channel apart from the first one, "" where they are one sound, or one of them is silent."""
    step = max(1, rate_hz // COMPARED_HZ)
    length = min(len(channels_SC), COMPARED_S * rate_hz) // step
    waves_CS = channels_SC[: length * step].reshape(length, step, -1).mean(axis=1).T
    waves_CS = waves_CS - waves_CS.mean(axis=1, keepdims=True)
    power_C = np.square(waves_CS).mean(axis=1) if length else np.zeros(0)
    for number in range(1, len(power_C)):
        if min(power_C[0], power_C[number]) < SILENT_SHARE * max(power_C[0], power_C[number]):
            continue
        both = waves_CS[0] + waves_CS[number]
        if np.square(both / 2).mean() < CANCELLED * (power_C[0] + power_C[number]) / 2:
            return f"channel {number} cancels channel 0"
        if _likeness(waves_CS[0], waves_CS[number], step / rate_hz) < ONE_SOUND or _alternate(
            waves_CS[[0, number]], step / rate_hz
        ):
            return f"another sound in channel {number}"
    return ""


def _likeness(one_S: NDArray[np.float32], other_S: NDArray[np.float32], sample_s: float) -> float:
    """The largest correlation of two waves at any delay up to DELAY_S."""
    size = 1 << (2 * len(one_S) - 1).bit_length()
    spectrum = np.fft.rfft(one_S, size) * np.conj(np.fft.rfft(other_S, size))
    products = np.fft.irfft(spectrum, size)
    lags = max(1, round(DELAY_S / sample_s))
    largest = max(np.abs(products[: lags + 1]).max(), np.abs(products[-lags:]).max())
    return float(largest / np.sqrt(np.square(one_S).sum() * np.square(other_S).sum() + 1e-20))


def _alternate(waves_2S: NDArray[np.float32], sample_s: float) -> bool:
    """Whether now the one and now the other wave is the louder one, as in a conversation."""
    size = max(1, round(TURN_S / sample_s))
    frames = waves_2S.shape[1] // size
    power_2F = np.square(waves_2S[:, : frames * size]).reshape(2, frames, size).mean(axis=2)
    heard_F = power_2F.max(axis=0) > 1e-3 * power_2F.max(initial=1e-20)
    louder_F = 10 * np.log10((power_2F[0] + 1e-20) / (power_2F[1] + 1e-20))[heard_F]
    return len(louder_F) > 0 and min(np.mean(louder_F > TURN_DB), np.mean(louder_F < -TURN_DB)) > TURN_SHARE


def _picture(part: ImagePart, source: str | bytes, name: str) -> MediaStats:
    picture, form = image.read_with_format(source, name=name)
    odd = _wrong_extension(name, form)
    extrema: list[tuple[int, int]] = list(picture.getextrema())  # type: ignore[arg-type]  # RGB: a pair a channel
    width, height = picture.size
    if all(high - low <= BLANK_LEVELS for low, high in extrema):
        odd.append(
            (
                "blank_picture",
                f"{name}: expected a picture, got one colour {tuple(low for low, _ in extrema)}",
            )
        )
    if min(width, height) < TINY_PIXELS:
        odd.append(
            ("tiny_picture", f"{name}: expected at least {TINY_PIXELS} pixels a side, got {width} x {height}")
        )
    if max(width, height) > LONGEST_ASPECT * min(width, height):
        odd.append(("narrow_picture", f"{name}: expected sides of at most 5 to 1, got {width} x {height}"))
    vector = near_duplicates.picture_vector(picture)
    return MediaStats(name, part.type, _digest(source), size=(width, height), oddities=odd, vector=vector)


EXAMINED: dict[str, Callable[[Any, str | bytes, str], MediaStats]] = {"image": _picture, "audio": _sound}
"""By modality: a part, its bytes or the place of its file, and its name for people -> what it is."""


def _wrong_extension(name: str, form: str) -> list[Oddity]:
    suffix = Path(name).suffix.lower()
    forms = EXTENSIONS.get(suffix)
    if forms is None or not form or form in forms:
        return []
    return [("wrong_extension", f"{name}: expected {suffix}, got {form}")]


def _digest(source: str | bytes) -> str:
    return files.sha256_bytes(source) if isinstance(source, bytes) else _file_digest(Path(source))


def _file_digest(path: Path) -> str:
    try:
        return files.sha256_once(path)  # many rows may stand on one recording
    except OSError as error:
        raise DataError("missing", f"{path}: can't be read: {error.strerror}") from error
