"""Sound files to mono float waves at the rate asked for, and back; what can't be trusted is refused with a
reason."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import ArrayLike, NDArray

from muomni.errors import DataError, ShapeError
from muomni.files import write_bytes
from muomni.media import decoders
from muomni.media.decoders import TORN_S, Sound, Source

SILENT_PEAK_TO_PEAK = 2e-4  # about -80 dB of full scale; dither and a constant offset lie below it
RATES_HZ = (1000, 768_000)  # beyond these a header is damaged, and a minute of sound would not fit the memory
LOUDEST = (
    4.0  # 12 dB above full scale: a file of floats may have such peaks, louder ones are of another scale
)
SCALES = (2.0**15, 2.0**23, 2.0**31)  # integers written as floats
OVER_SCALE = 1.1
LOUD_SHARE = (
    0.01  # of the samples of integers are larger than LOUDEST, but for silence; else single ones are damaged
)
STRETCHES, STRETCH_FRAMES = 64, 4096  # by so many stretches the scale of a file of floats is told


@dataclass(frozen=True)
class Info:
    """What a file is, by its header and its size; frames of what is there, None where only decoding tells."""

    rate_hz: int
    channels: int
    frames: int | None
    form: str
    codec: str
    said_s: float | None
    is_stream: bool
    surplus: int
    is_cut: bool

    @property
    def seconds(self) -> float:
        """Seconds of what is there; as announced where only decoding tells; 0 where nothing does."""
        return self.frames / self.rate_hz if self.frames is not None else self.said_s or 0.0


@dataclass(frozen=True)
class Decoded:
    """A wave as the file has it: (S,) float32 at the file's rate, divided by `scale`; `peak` is that of all
    channels before that.

    channels_SC  the channels that it is the mean of, where they were asked for (at most KEPT_CHANNELS)
    """

    wave_S: NDArray[np.float32]
    info: Info
    peak: float
    scale: float
    channels_SC: NDArray[np.float32] | None = None


def info(source: Source) -> Info:
    """What a sound file is, without decoding it; the header of an MP3 is believed where it fits the file's
    size.

    Raises  DataError: missing, empty, undecodable (torn files too).
    """
    with _opened(source, is_thorough=False) as (sound, _):
        return _info(sound)


def read(
    source: Source,
    rate_hz: int = 16_000,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    channel: int | None = None,
    max_s: float = 60.0,
    allow_silent: bool = False,
) -> NDArray[np.float32]:
    """The mean of a file's channels, or one of them, resampled to `rate_hz`.

    Takes   source: a file, or its content; start_s, end_s the window to decode (only it is decoded), cut at
            the file's end; channel: counted from 0.
    Gives   (S,) float32, [-1, 1] for integer formats; S = round(frames * rate_hz / file rate), to one sample.
            Files of floats may go beyond 1 (to LOUDEST); those that hold integers are scaled to 1.
    Raises  DataError: missing, empty, undecodable (torn files too), too_long (> max_s), nonfinite, silent,
            bad_row (window, channel).
    """
    decoded = decode(
        source, start_s=start_s, end_s=end_s, channel=channel, max_s=max_s, allow_silent=allow_silent
    )
    return resampled(decoded, rate_hz, name_of(source))


def decode(
    source: Source,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    channel: int | None = None,
    max_s: float = 60.0,
    allow_silent: bool = False,
    name: str | None = None,
    keep_channels: bool = False,
) -> Decoded:
    """As `read`, at the file's own rate, with what there is to say about the file; messages call it
    `name`."""
    kept: list[NDArray[np.float32]] | None = [] if keep_channels and channel is None else None
    with _opened(source, name) as (sound, name):
        if channel is not None and not 0 <= channel < sound.channels:
            has = "one channel" if sound.channels == 1 else f"channels 0 to {sound.channels - 1}"
            raise DataError(
                "bad_row",
                f"{name}: expected a channel of the file, which has {has}, got {channel}",
                hint="mend `channel`",
            )
        first, last = _window(sound, name, start_s, end_s, max_s)
        try:
            wave_S, peak = decoders.gathered(sound.blocks(first, last - first), channel, kept)
        except (soundfile.LibsndfileError, OSError) as error:
            raise DataError(
                "undecodable", f"{name}: not a readable sound file: {decoders.said(error)}"
            ) from error
        _refuse_short(sound, name, first, last, len(wave_S), max_s)
        if not math.isfinite(peak) or not np.isfinite(wave_S).all():
            raise DataError("nonfinite", f"{name}: holds NaN or infinite samples", hint="make the file anew")
        scale = (
            _scale(sound, name, peak, is_whole=first == 0 and last == sound.frames) if sound.is_float else 1.0
        )
        about = _info(sound)
    if scale != 1.0:
        wave_S = wave_S / np.float32(scale)
    if not allow_silent and np.ptp(wave_S) < SILENT_PEAK_TO_PEAK:
        if peak / scale > SILENT_PEAK_TO_PEAK and about.channels > 1 and channel is None:
            raise DataError(
                "silent", f"{name}: its channels cancel each other", hint="name the one to take: `channel: 0`"
            )
        raise DataError(
            "silent",
            f"{name}: nothing but silence",
            hint="the peak-to-peak value is below -80 dB of full scale",
        )
    channels_SC = np.concatenate(kept) if kept and about.channels > 1 else None
    return Decoded(wave_S, about, peak, scale, channels_SC)


def resampled(decoded: Decoded, rate_hz: int, name: str) -> NDArray[np.float32]:
    """The wave at another rate.

    Raises  DataError (empty) where it is too short for one sample.
    """
    wave_S = decoded.wave_S
    if decoded.info.rate_hz != rate_hz:
        wave_S = soxr.resample(wave_S, decoded.info.rate_hz, rate_hz).astype(np.float32)
    if len(wave_S) == 0:
        raise DataError("empty", f"{name}: too short for one sample at {rate_hz} Hz")
    return wave_S


def write(path: str | Path, wave_S: ArrayLike, rate_hz: int) -> None:
    """Write a mono wave as a 16-bit PCM wav file, whole or not at all; values beyond [-1, 1] are clipped.

    Raises  ShapeError if the wave is not one-dimensional; DataError(nonfinite, empty).
    """
    samples = np.asarray(wave_S, dtype=np.float32)
    if samples.ndim != 1:
        raise ShapeError(f"audio.write: expected a mono wave (S,), got shape {samples.shape}")
    if len(samples) == 0:
        raise DataError("empty", f"{path}: no samples to write")
    if not np.isfinite(samples).all():
        raise DataError("nonfinite", f"{path}: the wave to write holds NaN or infinite samples")
    stream = io.BytesIO()
    soundfile.write(stream, np.clip(samples, -1.0, 1.0), rate_hz, format="WAV", subtype="PCM_16")
    write_bytes(Path(path), stream.getvalue())


def name_of(source: Source) -> str:
    """What messages call a file."""
    return "sound in memory" if isinstance(source, bytes) else str(source)


@contextmanager
def _opened(
    source: Source, name: str | None = None, *, is_thorough: bool = True
) -> Iterator[tuple[Sound, str]]:
    name = name or name_of(source)
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise DataError(
            "missing",
            f"{name}: no such sound file",
            hint="paths in a manifest are relative to the manifest or its `root`",
        )
    if not (len(source) if isinstance(source, bytes) else os.path.getsize(source)):
        raise DataError("empty", f"{name}: the file has no bytes")
    try:
        sound = decoders.opened(source, name, is_thorough=is_thorough)
    except OSError as error:
        raise DataError("undecodable", f"{name}: not a readable sound file: {error}") from error
    try:
        if not RATES_HZ[0] <= sound.rate_hz <= RATES_HZ[1]:
            raise DataError(
                "undecodable", f"{name}: expected {RATES_HZ[0]} to {RATES_HZ[1]} Hz, got {sound.rate_hz} Hz"
            )
        yield sound, name
    finally:
        sound.close()


def _info(sound: Sound) -> Info:
    return Info(
        sound.rate_hz,
        sound.channels,
        sound.frames,
        sound.form,
        sound.codec,
        sound.said_s,
        sound.is_stream,
        sound.surplus,
        sound.is_cut,
    )


def _window(
    sound: Sound, name: str, start_s: float | None, end_s: float | None, max_s: float
) -> tuple[int, int]:
    """First frame and the frame after the last, within the file; one more than is allowed where the file's
    length is not known."""
    begin_s, stop_s = start_s or 0.0, math.inf if end_s is None else end_s
    if not 0.0 <= begin_s < stop_s:  # NaN fails here too
        raise DataError(
            "bad_row",
            f"{name}: start {start_s} s and end {end_s} s are no window",
            hint="expected 0 <= start < end",
        )
    rate_hz, most = sound.rate_hz, max_s * sound.rate_hz
    if sound.frames is None:
        if math.isinf(begin_s):
            raise DataError("empty", f"{name}: no sound from {begin_s:g} s on")
        first = round(begin_s * rate_hz)
        return first, round(min(stop_s * rate_hz, first + most + 1, 2.0**62))
    first, last = round(min(begin_s * rate_hz, sound.frames)), round(min(stop_s * rate_hz, sound.frames))
    if first >= last:
        raise _nothing(name, begin_s, sound.frames / rate_hz)
    if last - first > most:
        raise _too_long(name, (last - first) / rate_hz, max_s)
    return first, last


def _refuse_short(sound: Sound, name: str, first: int, last: int, got: int, max_s: float) -> None:
    """Refuse a file that ends before it should, and one whose length showed only now."""
    rate_hz, is_short = sound.rate_hz, last - first - got > TORN_S * sound.rate_hz + sound.slack_frames
    if sound.frames is None and got > max_s * rate_hz:
        raise _too_long(name, got / rate_hz, max_s, "more than ")
    length_s = sound.said_s if sound.frames is None else sound.frames / rate_hz
    if sound.fault and (is_short or sound.frames is None):
        of = "" if length_s is None else f" of {length_s:.2f} s"
        what = f"{name}: torn or damaged, {(first + got) / rate_hz:.2f} s{of} can be decoded: {sound.fault}"
        raise DataError("undecodable", what, hint="make the file anew")
    if sound.frames is None and length_s is not None:
        is_short = got < last - first and length_s * rate_hz - first - got > sound.slack_frames
    elif sound.frames is None:
        is_short = False
    if is_short and length_s is not None:
        raise decoders.torn(name, length_s, (first + got) / rate_hz)
    if got == 0:
        raise _nothing(name, first / rate_hz, length_s)


def _nothing(name: str, begin_s: float, length_s: float | None) -> DataError:
    lasts = "" if length_s is None else f", the file lasts {length_s:.2f} s"
    return DataError("empty", f"{name}: no sound from {begin_s:g} s on{lasts}")


def _too_long(name: str, length_s: float, max_s: float, more: str = "") -> DataError:
    what = f"{name}: {more}{length_s:.1f} s of sound, at most {max_s:g} s allowed"
    return DataError("too_long", what, hint="cut it, give `start` and `end`, or raise max_s")


def _scale(sound: Sound, name: str, peak: float, *, is_whole: bool) -> float:
    """What full scale is in a file of floats: 1, unless it holds numbers that only integers reach.

    All windows of a file must agree, so that the whole file is looked at, by stretches where it is long.
    Raises  DataError (nonfinite) for numbers that no format has, and for single ones among others within 1.
    """
    if is_whole and peak <= LOUDEST:
        return 1.0
    loud = looked = 0
    step = max(STRETCH_FRAMES, (sound.frames or 0) // STRETCHES)
    for first in range(0, sound.frames or 0, step):
        for block in sound.blocks(first, STRETCH_FRAMES):
            sizes = np.abs(block[np.isfinite(block)])
            peak, loud, looked = (
                max(peak, float(sizes.max(initial=0.0))),
                loud + int((sizes > LOUDEST).sum()),
                looked + sizes.size,
            )
    if peak <= LOUDEST:
        return 1.0
    scale = next((scale for scale in SCALES if peak <= OVER_SCALE * scale), None)
    if scale is None or loud < LOUD_SHARE * looked:
        what = f"{name}: expected samples within 1, got a peak of {peak:.3g} in {loud / max(1, looked):.1%} of them"
        raise DataError("nonfinite", what, hint="make the file anew, or divide it by its full scale")
    return scale
