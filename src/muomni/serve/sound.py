"""Sounds as bytes: each format's whole file, and the same as a stream of growing pieces."""

from __future__ import annotations

import io
import struct
from typing import Any, Protocol

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

Wave = NDArray[np.float32]
PCM_RATE_HZ = 24_000  # that of bare samples in this API
MEDIA_TYPES = {
    "wav": "audio/wav",
    "pcm": "audio/pcm",
    "pcm16": "audio/pcm",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
}
CODED = {"flac": ("FLAC", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS")}
# Readers of a FLAC or an MP3 file want a length, which stands at its beginning: libsndfile can't read one without, or
# reads a part. So these two are made whole.
STREAMED = ("wav", "pcm", "pcm16", "opus")
UNKNOWN_BYTES = 0xFFFFFFFF  # the size of a wav that is still being made
SAMPLE_BYTES = 2
OPUS_RATES_HZ = (8000, 12_000, 16_000, 24_000, 48_000)


class Encoder(Protocol):
    """Makes bytes of samples as they come."""

    def push(self, wave_S: Wave) -> bytes:
        """The bytes that samples make certain, maybe none."""

    def close(self) -> bytes:
        """The bytes that were still missing."""


def encoder(form: str, rate_hz: int) -> Encoder:
    """The encoder of a stream in one of MEDIA_TYPES."""
    if form not in STREAMED:
        return _Whole(form, rate_hz)
    if form == "opus":
        return _Opus(rate_hz)
    return _Wav(rate_hz) if form == "wav" else _Pcm(rate_hz)


def whole(form: str, wave_S: Wave, rate_hz: int) -> bytes:
    """A file of samples (S,), or bare 16-bit samples at PCM_RATE_HZ; of no samples a hundredth of a second of silence."""
    wave_S = wave_S if len(wave_S) else np.zeros(rate_hz // 100, np.float32)
    if form == "wav":
        samples = _int16(wave_S)
        return _wav_head(rate_hz, len(samples)) + samples
    if form in CODED:
        container, subtype = CODED[form]
        stream = io.BytesIO()
        wave_S, rate_hz = _at_rate_of(form, wave_S, rate_hz)
        soundfile.write(stream, np.clip(wave_S, -1, 1), rate_hz, format=container, subtype=subtype)
        return stream.getvalue()
    made = _Pcm(rate_hz)
    return made.push(wave_S) + made.close()


class _Pcm:
    """Bare samples of 16 bits, little-endian, at PCM_RATE_HZ."""

    def __init__(self, rate_hz: int) -> None:
        is_same = rate_hz == PCM_RATE_HZ
        self._resampler = None if is_same else soxr.ResampleStream(rate_hz, PCM_RATE_HZ, 1, "float32")

    def push(self, wave_S: Wave) -> bytes:
        """See Encoder."""
        return _int16(wave_S if self._resampler is None else self._resampler.resample_chunk(wave_S))

    def close(self) -> bytes:
        """See Encoder."""
        if self._resampler is None:
            return b""
        return _int16(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))


class _Wav:
    """A wav whose head does not know its length."""

    def __init__(self, rate_hz: int) -> None:
        self._head = _wav_head(rate_hz, None)

    def push(self, wave_S: Wave) -> bytes:
        """See Encoder."""
        head, self._head = self._head, b""
        return head + _int16(wave_S)

    def close(self) -> bytes:
        """See Encoder."""
        head, self._head = self._head, b""
        return head


class _Opus:
    """Ogg pages with Opus in them."""

    def __init__(self, rate_hz: int) -> None:
        container, subtype = CODED["opus"]
        self._resampler = None
        if rate_hz not in OPUS_RATES_HZ:
            self._resampler = soxr.ResampleStream(rate_hz, max(OPUS_RATES_HZ), 1, "float32")
            rate_hz = max(OPUS_RATES_HZ)
        self._sent = _Forward()
        self._file = soundfile.SoundFile(
            self._sent, "w", samplerate=rate_hz, channels=1, format=container, subtype=subtype
        )

    def push(self, wave_S: Wave) -> bytes:
        """See Encoder."""
        if self._resampler is not None:
            wave_S = self._resampler.resample_chunk(wave_S)
        self._file.write(np.clip(wave_S, -1, 1))
        return self._sent.taken()

    def close(self) -> bytes:
        """See Encoder."""
        if self._resampler is not None:
            rest_S = self._resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            self._file.write(np.clip(rest_S, -1, 1))
        self._file.close()
        return self._sent.taken()


class _Whole:
    """A format that is made at the end, of all samples."""

    def __init__(self, form: str, rate_hz: int) -> None:
        self._form, self._rate_hz = form, rate_hz
        self._waves: list[Wave] = []

    def push(self, wave_S: Wave) -> bytes:
        """See Encoder."""
        self._waves.append(wave_S)
        return b""

    def close(self) -> bytes:
        """See Encoder."""
        return whole(self._form, np.concatenate(self._waves or [np.zeros(0, np.float32)]), self._rate_hz)


class _Forward(io.RawIOBase):
    """A file that is sent as it is written."""

    def __init__(self) -> None:
        self._waiting, self._place = bytearray(), 0

    def taken(self) -> bytes:
        """The bytes since the last call."""
        content = bytes(self._waiting)
        self._waiting.clear()
        return content

    def write(self, content: Any, /) -> int:
        """More bytes."""
        self._waiting += content
        self._place += len(content)
        return len(content)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """It stands where it ends."""
        return self._place

    def tell(self) -> int:
        """How much was written."""
        return self._place


def _at_rate_of(form: str, wave_S: Wave, rate_hz: int) -> tuple[Wave, int]:
    """Samples at a rate that the format has."""
    if form != "opus" or rate_hz in OPUS_RATES_HZ:
        return wave_S, rate_hz
    return soxr.resample(wave_S, rate_hz, max(OPUS_RATES_HZ)).astype(np.float32), max(OPUS_RATES_HZ)


def _int16(wave_S: Wave) -> bytes:
    return (np.clip(wave_S, -1, 1) * 32767).round().astype("<i2").tobytes()


def _wav_head(rate_hz: int, size: int | None) -> bytes:
    total, data = (UNKNOWN_BYTES, UNKNOWN_BYTES) if size is None else (36 + size, size)
    form = struct.pack("<IHHIIHH", 16, 1, 1, rate_hz, rate_hz * SAMPLE_BYTES, SAMPLE_BYTES, 16)
    return b"RIFF" + struct.pack("<I", total) + b"WAVEfmt " + form + b"data" + struct.pack("<I", data)
