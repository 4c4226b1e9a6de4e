"""One picture or sound of a manifest, opened: what it is, what is odd about it, and by what it can be known again."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from muomni import files
from muomni.data import likeness
from muomni.data.sample import AudioPart, ImagePart, inline_bytes
from muomni.errors import DataError
from muomni.media import audio, image, stored

UNKNOWN_RATE_HZ = 16_000
FULL_SCALE = 0.999
CLIPPED_SHARE = 1e-3  # of the samples; the peaks of a well-levelled recording may touch full scale
QUIET_PEAK = 0.01  # -40 dB of full scale
SHORT_S, LONG_S = 0.1, 30.0
END_SLACK_S = 0.05  # word times are rounded
TINY_PIXELS = 16
LONGEST_ASPECT = 5.0
BLANK_LEVELS = 1  # of 255: most difference of any two pixels
EXTENSIONS = {
    ".wav": {"WAV", "WAVEX", "RF64"},
    ".flac": {"FLAC"},
    ".ogg": {"OGG"},
    ".mp3": {"MP3", "MPEG"},
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
class Medium:
    """A file or inline content, or a stretch of a sound."""

    name: str  # as people should read it
    digest: str  # of the whole file's bytes
    start: float | None = None
    end: float | None = None
    seconds: float = 0.0
    rate_hz: int = 0  # 0: a picture
    channels: int = 0
    size: tuple[int, int] = (0, 0)
    oddities: list[Oddity] = field(default_factory=list)
    vector: likeness.Vector | None = None

    @property
    def key(self) -> tuple[str, float | None, float | None]:
        """The same for the same bytes, wherever they lie."""
        return self.digest, self.start, self.end

    @property
    def is_sound(self) -> bool:
        """Whether it is heard rather than seen."""
        return self.rate_hz > 0


def examine(part: ImagePart | AudioPart) -> Medium:
    """Decode the whole medium and look at it.

    Raises  DataError, as `media.audio.read` and `media.image.read` do.
    """
    content = inline_bytes(part.path)
    name = stored.shown(part.path)
    source = content if content is not None else part.path
    return _sound(part, source, name) if isinstance(part, AudioPart) else _picture(source, name)


def _sound(part: AudioPart, source: str | bytes, name: str) -> Medium:
    rate_hz, channels, whole_s, form = _header(source)
    wave_S = audio.read(source, rate_hz or UNKNOWN_RATE_HZ, start_s=part.start, end_s=part.end)
    seconds = len(wave_S) / rate_hz
    odd = _wrong_extension(name, form)
    peak = float(np.abs(wave_S).max())
    clipped = float(np.mean(np.abs(wave_S) >= FULL_SCALE))
    if clipped > CLIPPED_SHARE:
        odd.append(("clipped", f"{name}: expected few samples at full scale, got {clipped:.1%}"))
    if peak < QUIET_PEAK:
        odd.append(("quiet", f"{name}: expected a peak of at least {QUIET_PEAK:g}, got {peak:.4f}"))
    if seconds < SHORT_S:
        odd.append(("short_sound", f"{name}: expected at least {SHORT_S:g} s, got {seconds:.3f} s"))
    if seconds > LONG_S:
        odd.append(("long_sound", f"{name}: expected at most {LONG_S:g} s, got {seconds:.1f} s"))
    if part.end is not None and part.end > whole_s + END_SLACK_S:
        odd.append(("end_beyond", f"{name}: expected an end within the {whole_s:.2f} s of the sound, got {part.end:g} s"))
    vector = likeness.sound_vector(wave_S, rate_hz)
    return Medium(name, _digest(source), part.start, part.end, seconds, rate_hz, channels, oddities=odd, vector=vector)


def _header(source: str | bytes) -> tuple[int, int, float, str]:
    """Rate, channels, seconds and format; zeros where the header can't be read, for `audio.read` to say why."""
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as sound:
            return sound.samplerate, sound.channels, sound.frames / sound.samplerate, sound.format
    except (soundfile.LibsndfileError, OSError, ZeroDivisionError):
        return 0, 0, 0.0, ""


def _picture(source: str | bytes, name: str) -> Medium:
    picture = image.read(source)
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as header:
        odd = _wrong_extension(name, header.format or "")
    extrema: list[tuple[int, int]] = list(picture.getextrema())  # type: ignore[arg-type]  # RGB: a pair a channel
    width, height = picture.size
    if all(high - low <= BLANK_LEVELS for low, high in extrema):
        odd.append(("blank_picture", f"{name}: expected a picture, got one colour {tuple(low for low, _ in extrema)}"))
    if min(width, height) < TINY_PIXELS:
        odd.append(("tiny_picture", f"{name}: expected at least {TINY_PIXELS} pixels a side, got {width} x {height}"))
    if max(width, height) > LONGEST_ASPECT * min(width, height):
        odd.append(("narrow_picture", f"{name}: expected sides of at most 5 to 1, got {width} x {height}"))
    return Medium(name, _digest(source), size=(width, height), oddities=odd, vector=likeness.picture_vector(picture))


def _wrong_extension(name: str, form: str) -> list[Oddity]:
    suffix = Path(name).suffix.lower()
    known = EXTENSIONS.get(suffix)
    if known is None or not form or form in known:
        return []
    return [("wrong_extension", f"{name}: expected {suffix}, got {form}")]


def _digest(source: str | bytes) -> str:
    return files.sha256_bytes(source) if isinstance(source, bytes) else _file_digest(Path(source))


def _file_digest(path: Path) -> str:
    try:
        return files.sha256_file(path)
    except OSError as error:
        raise DataError("missing", f"{path}: can't be read: {error.strerror}") from error
