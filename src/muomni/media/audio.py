"""Sound files to mono float waves at the rate asked for, and back; what can't be trusted is refused with a reason."""

from __future__ import annotations

import io
import math
import os
import struct
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import ArrayLike, NDArray

from muomni.errors import DataError, ShapeError
from muomni.files import write_bytes

SILENT_PEAK_TO_PEAK = 2e-4  # about -80 dB of full scale; dither and a constant offset lie below it
BLOCK_VALUES = 1 << 20  # values decoded at once: a file of a thousand channels can't fill the memory
RATES_HZ = (1000, 768_000)  # beyond these a header is damaged, and a minute of sound would not fit the memory
STREAMED_BYTES = 0x7FFFF000  # a RIFF size from here on was written by a pipe that did not know the length


def read(
    source: str | Path | bytes,
    rate_hz: int = 16_000,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    max_s: float = 60.0,
    allow_silent: bool = False,
) -> NDArray[np.float32]:
    """The mean of a file's channels, resampled to `rate_hz`.

    Takes   source: a file, or its content; start_s, end_s the window to decode (only it is decoded), cut at the file's end.
    Gives   (S,) float32, [-1, 1] for integer formats; S = round(frames * rate_hz / file rate), to one sample.
    Raises  DataError: missing, empty, undecodable (torn files too), too_long (> max_s), nonfinite, silent, bad_row (window).
    """
    is_content = isinstance(source, bytes)
    path = "sound in memory" if is_content else str(source)
    if not is_content and not os.path.isfile(source):
        raise DataError("missing", f"{path}: no such sound file", hint="paths in a manifest are relative to the manifest or its `root`")
    size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
    if size == 0:
        raise DataError("empty", f"{path}: the file has no bytes")
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as stream:
            _refuse_torn_wav(stream.read(12), size, path)
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as sound:
            if not RATES_HZ[0] <= sound.samplerate <= RATES_HZ[1]:
                raise DataError("undecodable", f"{path}: expected {RATES_HZ[0]} to {RATES_HZ[1]} Hz, got {sound.samplerate} Hz")
            first, last = _window(sound, path, start_s, end_s)
            if last - first > max_s * sound.samplerate:
                length_s = (last - first) / sound.samplerate
                raise DataError(
                    "too_long", f"{path}: {length_s:.1f} s of sound, at most {max_s:g} s allowed", hint="cut it, or raise max_s"
                )
            source_rate_hz = sound.samplerate
            wave_S = _decode(sound, first, last - first)
    except (soundfile.LibsndfileError, OSError) as error:
        raise DataError("undecodable", f"{path}: not a readable sound file: {_said(error)}") from error
    if len(wave_S) != last - first:
        raise DataError("undecodable", f"{path}: torn, {last - first} frames announced, {len(wave_S)} found")
    if not np.isfinite(wave_S).all():
        raise DataError("nonfinite", f"{path}: holds NaN or infinite samples")
    if not allow_silent and np.ptp(wave_S) < SILENT_PEAK_TO_PEAK:
        raise DataError("silent", f"{path}: nothing but silence", hint="the peak-to-peak value is below -80 dB of full scale")
    if source_rate_hz != rate_hz:
        wave_S = soxr.resample(wave_S, source_rate_hz, rate_hz).astype(np.float32)
    if len(wave_S) == 0:
        raise DataError("empty", f"{path}: too short for one sample at {rate_hz} Hz")
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


def _window(sound: soundfile.SoundFile, path: str, start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """First frame and the frame after the last, within the file."""
    begin_s, stop_s = start_s or 0.0, math.inf if end_s is None else end_s
    if not 0.0 <= begin_s < stop_s:  # NaN fails here too
        raise DataError("bad_row", f"{path}: start {start_s} s and end {end_s} s are no window", hint="expected 0 <= start < end")
    first = round(min(begin_s * sound.samplerate, sound.frames))
    last = round(min(stop_s * sound.samplerate, sound.frames))
    if first >= last:
        length_s = sound.frames / sound.samplerate
        raise DataError("empty", f"{path}: no sound from {begin_s:g} s on, the file lasts {length_s:.2f} s")
    return first, last


def _decode(sound: soundfile.SoundFile, first: int, frames: int) -> NDArray[np.float32]:
    """Mono frames from `first` on; fewer than asked for if the file is torn."""
    sound.seek(first)
    step = max(1, BLOCK_VALUES // sound.channels)
    pieces: list[NDArray[np.float32]] = []
    left = frames
    while left > 0:
        block = sound.read(min(step, left), dtype="float32", always_2d=True)
        if len(block) == 0:
            break
        pieces.append(block.mean(axis=1, dtype=np.float32))
        left -= len(block)
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def _said(error: Exception) -> str:
    """libsndfile's words without the object's address, which is another in each run."""
    return error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)


def _refuse_torn_wav(head: bytes, size: int, path: str) -> None:
    """libsndfile shortens a torn wav without a word, and a whole transcript would then stand beside half of its sound."""
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return
    announced = struct.unpack("<I", head[4:8])[0] + 8
    if size < announced < STREAMED_BYTES:
        raise DataError("undecodable", f"{path}: torn, the header announces {announced} bytes, the file has {size}")
