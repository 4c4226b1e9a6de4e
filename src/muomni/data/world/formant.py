"""A small formant synthesiser in numpy, for machines without espeak-ng: letters to sounds, not beautiful, but
learnable and exact."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

RATE_HZ = 16_000

# letter: (formant 1, formant 2, formant 3 in Hz, share of voice, share of noise, relative length). Source:
# rough textbook formants.
_VOWELS = {
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (390, 1990, 2550),
    "o": (570, 840, 2410),
    "u": (440, 1020, 2240),
    "y": (300, 2200, 2900),
}
_VOICED = {
    "l": (360, 1300, 2700),
    "m": (280, 900, 2200),
    "n": (280, 1500, 2500),
    "r": (420, 1300, 1600),
    "w": (300, 610, 2200),
    "j": (280, 2200, 2900),
}
_NOISY = {
    "s": (5200, 6400, 7300),
    "f": (1400, 4300, 6900),
    "h": (800, 1700, 2600),
    "z": (4800, 5900, 7000),
    "v": (1200, 3500, 5600),
    "x": (3000, 5000, 6500),
}
_STOPS = {
    "b": (400, 900, 2300),
    "d": (400, 1800, 2700),
    "g": (300, 1500, 2100),
    "p": (700, 1100, 2500),
    "t": (3200, 4200, 5200),
    "k": (1600, 2100, 3100),
    "c": (2000, 2700, 3600),
    "q": (1300, 1900, 3000),
}


def _sound(letter: str) -> tuple[tuple[int, int, int], float, float, float]:
    """(formants in Hz, share of voice, share of noise, relative length) of a letter."""
    if letter in _VOWELS:
        return _VOWELS[letter], 1.0, 0.02, 1.0
    if letter in _VOICED:
        return _VOICED[letter], 0.6, 0.02, 0.7
    if letter in _NOISY:
        return _NOISY[letter], 0.3 if letter in "zv" else 0.0, 0.35, 0.8
    return _STOPS.get(letter, (500, 1500, 2500)), 0.15 if letter in "bdg" else 0.0, 0.5, 0.45


def say(text: str, voice: str, rate_wpm: int, pitch: int, seed: int) -> npt.NDArray[np.float32]:
    """Speech of a text, float32 (S,) at 16 kHz; the voice's name decides its pitch and the length of its
    throat.

    `rate_wpm` counts words a minute as espeak does, `pitch` is 0..99; equal arguments give equal samples.
    """
    rng = np.random.default_rng(seed)
    digest = hashlib.sha256(voice.encode()).digest()
    throat = 0.85 + 0.3 * digest[0] / 255
    base_hz = (80 + 120 * digest[1] / 255) * 2 ** ((pitch - 50) / 100)
    unit_samples = int(0.085 * RATE_HZ * 160 / rate_wpm)
    parts = [
        _letter(rng, letter, unit_samples, base_hz, throat)
        for letter in text.lower()
        if letter.isalpha() or letter == " "
    ]
    return np.concatenate(parts or [np.zeros(unit_samples)]).astype(np.float32)


def _letter(
    rng: np.random.Generator, letter: str, unit_samples: int, base_hz: float, throat: float
) -> npt.NDArray[np.float64]:
    if letter == " ":
        return np.zeros(unit_samples // 2)
    formants, voiced, noisy, length = _sound(letter)
    size = int(unit_samples * length)
    freqs = np.fft.rfftfreq(size, 1 / RATE_HZ)

    def envelope(at: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        return np.asarray(
            sum(
                gain / (1 + ((at - throat * centre) / 90) ** 2)
                for gain, centre in zip((1.0, 0.6, 0.3), formants, strict=True)
            )
        )

    harmonics = base_hz * np.arange(1, int(7000 / base_hz))
    phase = 2 * np.pi * np.outer(np.arange(size) / RATE_HZ, harmonics)
    buzz = np.sin(phase) @ envelope(harmonics)
    hiss = np.fft.irfft(np.fft.rfft(rng.standard_normal(size)) * envelope(freqs), size) * 3
    fade = np.minimum(1, np.minimum(np.arange(size), np.arange(size)[::-1]) / (0.1 * size))
    return np.asarray((voiced * buzz / 3 + noisy * hiss) * fade)
