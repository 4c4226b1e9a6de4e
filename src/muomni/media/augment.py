"""Small changes that keep the meaning: of waves, log-mels and pictures. Pure functions; chance comes in as a
generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray
from PIL import Image

Wave = NDArray[np.float32]
Mel = NDArray[np.floating[Any]]
Picture = NDArray[np.uint8]


def speed(wave_S: Wave, factor: float, *, rate_hz: int = 16_000) -> Wave:
    """Faster (factor > 1) or slower, with the pitch, like a tape: S / factor samples."""
    changed: Wave = soxr.resample(wave_S, rate_hz * factor, rate_hz).astype(np.float32)
    return changed


def gain(wave_S: Wave, decibels: float) -> Wave:
    """Louder or quieter; no louder than full scale allows, for a wave that is cut off there is another
    sound."""
    return _within(wave_S * np.float32(10 ** (decibels / 20)), wave_S)


def noise(wave_S: Wave, snr_db: float, rng: np.random.Generator) -> Wave:
    """White noise so far under the wave's own power; both quieter where they go beyond full scale."""
    deviation = float(np.sqrt(np.mean(np.square(wave_S, dtype=np.float64)))) * 10 ** (-snr_db / 20)
    return _within(wave_S + rng.normal(0.0, deviation, wave_S.shape).astype(np.float32), wave_S)


def _within(changed_S: Wave, wave_S: Wave) -> Wave:
    """A changed wave with a peak of at most 1, or of the peak that the wave had before, where that was
    more."""
    peak = float(np.abs(changed_S).max(initial=0.0))
    most = max(1.0, float(np.abs(wave_S).max(initial=0.0))) if peak > 1.0 else 1.0
    return changed_S if peak <= most else changed_S * np.float32(most / peak)


def formants(mel_FM: Mel, factor: float) -> Mel:
    """Another vocal tract: the frequency axis of a log-mel is stretched by `factor` (a shorter tract has
    factor > 1)."""
    bins = np.arange(mel_FM.shape[1])
    source = np.clip(bins / factor, 0, mel_FM.shape[1] - 1)
    low = np.floor(source).astype(int)
    high = np.minimum(low + 1, mel_FM.shape[1] - 1)
    share = (source - low).astype(mel_FM.dtype)
    stretched: Mel = mel_FM[:, low] * (1 - share) + mel_FM[:, high] * share
    return stretched


def spec_augment(
    mel_FM: Mel,
    rng: np.random.Generator,
    *,
    time_masks: int = 2,
    time_frames: int = 10,
    time_share: float = 0.2,
    bin_masks: int = 2,
    bins: int = 16,
) -> Mel:
    """Log-mel with stretches of time and bands of frequency set to its mean.

    Takes   mel_FM; each time mask is at most `time_frames` wide and `time_share` of the utterance, so that
            short words survive.
    Source  Park et al. 2019, without time warping.
    """
    changed = mel_FM.copy()
    frames, width = mel_FM.shape
    mean = mel_FM.mean(dtype=np.float64)
    for _ in range(time_masks):
        size = int(rng.integers(0, min(time_frames, int(frames * time_share)) + 1))
        start = int(rng.integers(0, frames - size + 1))
        changed[start : start + size] = mean
    for _ in range(bin_masks):
        size = int(rng.integers(0, min(bins, width) + 1))
        start = int(rng.integers(0, width - size + 1))
        changed[:, start : start + size] = mean
    return changed


def shift(picture_HW3: Picture, down: int, right: int) -> Picture:
    """Moved by whole pixels (negative: up, left); the edge is repeated where nothing was."""
    height, width = picture_HW3.shape[:2]
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    moved: Picture = picture_HW3[rows[:, None], columns[None, :]]
    return moved


def crop(picture_HW3: Picture, share: float, rng: np.random.Generator) -> Picture:
    """A random window of `share` of both edges, brought back to the size by nearest neighbours."""
    height, width = picture_HW3.shape[:2]
    top, left = rng.random(2) * (1 - share)
    rows = ((top + share * (np.arange(height) + 0.5) / height) * height).astype(int).clip(0, height - 1)
    columns = ((left + share * (np.arange(width) + 0.5) / width) * width).astype(int).clip(0, width - 1)
    zoomed: Picture = picture_HW3[rows[:, None], columns[None, :]]
    return zoomed


def flip(picture_HW3: Picture) -> Picture:
    """Left and right exchanged: not for pictures whose captions name sides."""
    return picture_HW3[:, ::-1]


def jitter(
    picture_HW3: Picture,
    rng: np.random.Generator,
    *,
    brightness: float = 0.2,
    contrast: float = 0.2,
    tint: float = 0.05,
) -> Picture:
    """Light, contrast and colour changed a little; each number is the largest relative change."""
    x = picture_HW3.astype(np.float32)
    mean = x.mean()
    x = (x - mean) * (1 + rng.uniform(-contrast, contrast)) + mean * (
        1 + rng.uniform(-brightness, brightness)
    )
    x *= 1 + rng.uniform(-tint, tint, 3).astype(np.float32)
    changed: Picture = np.clip(np.rint(x), 0, 255).astype(np.uint8)
    return changed


def warp(
    picture_HW3: Picture, rng: np.random.Generator, *, degrees: float, scale: float, shear: float
) -> Picture:
    """Turned, zoomed and slanted a little about its middle, bilinear; what comes in from outside has the
    colour of the border's median.

    Takes   degrees the largest turn either way; scale and shear the largest relative change.
    """
    height, width = picture_HW3.shape[:2]
    angle = np.deg2rad(rng.uniform(-degrees, degrees))
    zoom = np.exp(rng.uniform(-scale, scale, 2))
    slant = rng.uniform(-shear, shear)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1.0, slant], [0.0, 1.0]]) @ np.diag(zoom)
    middle = np.array([width / 2, height / 2])
    offset = middle - matrix @ middle
    border = np.concatenate([picture_HW3[0], picture_HW3[-1], picture_HW3[:, 0], picture_HW3[:, -1]])
    fill = tuple(int(value) for value in np.median(border, axis=0))
    coefficients = (matrix[0, 0], matrix[0, 1], offset[0], matrix[1, 0], matrix[1, 1], offset[1])
    moved = Image.fromarray(picture_HW3).transform(
        (width, height), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=fill
    )
    return np.array(moved)


def narrow(mel_FM: Mel, bins: int) -> Mel:
    """Telephone sound: the bins from `bins` on hold as little as the quietest one does."""
    changed = mel_FM.copy()
    changed[:, bins:] = mel_FM.min()
    return changed
