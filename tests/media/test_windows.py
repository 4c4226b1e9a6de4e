"""A window of any file is what lies there when the whole file is decoded, bit for bit but for the rounding of
MP3's synthesis."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from muomni.media import audio

EXACT = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_U8"),
    ("WAV", "PCM_24"),
    ("WAV", "PCM_32"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("WAV", "ALAW"),
]
EXACT += [
    ("WAV", "ULAW"),
    ("WAV", "IMA_ADPCM"),
    ("WAV", "MS_ADPCM"),
    ("WAV", "GSM610"),
    ("WAVEX", "PCM_16"),
    ("RF64", "PCM_24"),
]
EXACT += [
    ("W64", "PCM_16"),
    ("W64", "GSM610"),
    ("AIFF", "PCM_16"),
    ("AIFF", "IMA_ADPCM"),
    ("AU", "ULAW"),
    ("AU", "G721_32"),
    ("CAF", "PCM_24"),
]
ONE_CHANNEL = [
    ("WAV", "GSM610"),
    ("W64", "GSM610"),
    ("AIFF", "IMA_ADPCM"),
    ("AU", "G721_32"),
    ("SVX", "PCM_16"),
]
EXACT += [
    ("CAF", "ALAC_16"),
    ("FLAC", "PCM_S8"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("NIST", "PCM_16"),
    ("SVX", "PCM_16"),
]


def speech(seconds: float, rate_hz: int, channels: int, seed: int) -> NDArray[np.float32]:
    """(S, C) of syllables of gliding tones in noise: loud and quiet by turns, so that encoders borrow
    bits."""
    rng = np.random.default_rng(seed)
    time_S = np.arange(round(seconds * rate_hz)) / rate_hz
    waves = []
    for number in range(channels):
        tones = sum(
            np.sin(2 * np.pi * hz * (time_S + 0.01 * np.sin(9 * time_S))) for hz in rng.uniform(100, 3000, 5)
        )
        waves.append(
            0.12 * tones * np.abs(np.sin(2 * np.pi * (1.3 + 0.3 * number) * time_S)) ** 3
            + 0.02 * rng.standard_normal(len(time_S))
        )
    return np.stack(waves, 1).astype(np.float32)


def encoded(form: str, subtype: str, wave_SC: NDArray[np.float32], rate_hz: int, **options: object) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, wave_SC, rate_hz, format=form, subtype=subtype, **options)
    return stream.getvalue()


def largest_difference(content: bytes, seed: int, windows: int = 12) -> float:
    """Of windows at the beginning, in the middle, near the end and over it, from the same stretch of the
    whole."""
    whole = audio.decode(content, max_s=600)
    wave_S, rate_hz, rng = whole.wave_S, whole.info.rate_hz, np.random.default_rng(seed)
    length = len(wave_S)
    starts = [
        0,
        1,
        100,
        length - 1,
        length - 7,
        length - rate_hz // 50,
        length - rate_hz // 2,
        length - rate_hz,
        length - 2 * rate_hz,
    ]
    worst = 0.0
    for first in [start for start in starts if start >= 0] + rng.integers(0, length, windows).tolist():
        size = int(rng.choice([1, 9, rate_hz // 10, rate_hz, 4 * rate_hz]))
        cut_S = audio.decode(
            content, start_s=first / rate_hz, end_s=(first + size) / rate_hz, allow_silent=True, max_s=600
        ).wave_S
        assert len(cut_S) == min(size, length - first)
        worst = max(worst, float(np.abs(cut_S - wave_S[first : first + size]).max()))
    return worst


@pytest.mark.parametrize(("form", "subtype"), EXACT)
@pytest.mark.parametrize("channels", [1, 2])
def test_windows_of_files_whose_samples_stand_alone(form: str, subtype: str, channels: int) -> None:
    if (form, subtype) in ONE_CHANNEL:
        channels = 1
    content = encoded(form, subtype, speech(2.3, 8000, channels, 1), 8000)
    assert largest_difference(content, 2, windows=5) == 0.0


@pytest.mark.parametrize("rate_hz", [8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
def test_windows_of_mp3(rate_hz: int, mode: str) -> None:
    """libsndfile's own seek lacks the bits that a frame borrows from earlier ones: it is off by up to 0.05
    here."""
    for number, level in enumerate((0.0, 0.6, 0.9)):
        wave_SC = speech(4.0, rate_hz, 1 + number % 2, rate_hz + number)
        content = encoded(
            "MP3", "MPEG_LAYER_III", wave_SC, rate_hz, compression_level=level, bitrate_mode=mode
        )
        assert largest_difference(content, number, windows=6) < 2e-7


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 22_050, 44_100])
def test_windows_of_vorbis(rate_hz: int) -> None:
    """libsndfile's own seek into the last page comes late by what was cut from its end."""
    for number, (level, seconds) in enumerate([(0.0, 3.3), (0.5, 14.7), (1.0, 21.3), (1.0, 0.7)]):
        wave_SC = speech(seconds, rate_hz, 1 + number % 2, rate_hz + number)
        assert (
            largest_difference(
                encoded("OGG", "VORBIS", wave_SC, rate_hz, compression_level=level), number, windows=10
            )
            == 0.0
        )


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 24_000, 48_000])
def test_windows_of_opus(rate_hz: int) -> None:
    for number, (level, seconds) in enumerate([(0.0, 2.2), (0.6, 9.3), (1.0, 14.0)]):
        wave_SC = speech(seconds, rate_hz, 1 + number % 2, rate_hz + number)
        assert (
            largest_difference(
                encoded("OGG", "OPUS", wave_SC, rate_hz, compression_level=level), number, windows=8
            )
            < 1e-6
        )


def test_a_window_of_a_file_is_that_of_its_bytes(tmp_path) -> None:
    for form, subtype, name in (
        ("WAV", "PCM_16", "a.wav"),
        ("MP3", "MPEG_LAYER_III", "a.mp3"),
        ("OGG", "VORBIS", "a.ogg"),
    ):
        content = encoded(form, subtype, speech(3.0, 16_000, 1, 5), 16_000)
        (tmp_path / name).write_bytes(content)
        assert np.array_equal(
            audio.read(tmp_path / name, start_s=1.1, end_s=2.2), audio.read(content, start_s=1.1, end_s=2.2)
        )


def test_the_seconds_told_are_those_read() -> None:
    for form, subtype in (*EXACT, ("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS")):
        content = encoded(form, subtype, speech(1.37, 8000, 1, 3), 8000)
        assert audio.info(content).seconds == pytest.approx(len(audio.read(content, 8000)) / 8000, abs=1e-3)
