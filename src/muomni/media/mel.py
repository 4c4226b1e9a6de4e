"""The one home of the spectral constants, and the way from waves to log-mel frames."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from muomni.errors import ShapeError

TINY_POWER = 1e-20  # below it the square root's gradient is cut to zero instead of growing without bound


class MelSpec(BaseModel):
    """Every number between a wave and its log-mel frames; stored with the weights that were trained on
    them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate_hz: int = Field(default=16_000, gt=0)
    n_fft: int = Field(default=1024, ge=2)
    window_samples: int = Field(default=400, ge=2)
    hop_samples: int = Field(default=160, ge=1)
    num_mels: int = Field(default=128, ge=1)
    f_min_hz: float = Field(default=0.0, ge=0.0)
    f_max_hz: float = Field(default=8000.0, gt=0.0)
    scale: Literal["slaney", "htk"] = "slaney"
    norm: Literal["slaney"] | None = "slaney"
    power: float = 2.0
    floor: float = Field(default=1e-10, gt=0.0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.power not in (1.0, 2.0):
            raise ValueError(f"expected power 1 (magnitude) or 2, got {self.power}")
        if self.window_samples > self.n_fft:
            raise ValueError(f"window_samples {self.window_samples} must not exceed n_fft {self.n_fft}")
        if self.hop_samples > self.window_samples // 2:
            raise ValueError(
                f"hop_samples {self.hop_samples} must be at most half of window_samples {self.window_samples}: else samples go unseen"
            )
        if not self.f_min_hz < self.f_max_hz <= self.rate_hz / 2:
            raise ValueError(
                f"expected f_min_hz {self.f_min_hz} < f_max_hz {self.f_max_hz} <= half of rate_hz {self.rate_hz}"
            )
        return self

    @property
    def frame_rate_hz(self) -> float:
        """Mel frames a second."""
        return self.rate_hz / self.hop_samples

    @property
    def log_floor(self) -> float:
        """The value of a log-mel bin that holds nothing; the right padding for log-mel frames."""
        return math.log(self.floor)

    def bin_at(self, hz: float) -> int:
        """The first bin whose filter lies above a frequency; num_mels where none does."""
        low, high = _to_mel(np.array([self.f_min_hz, self.f_max_hz]), self.scale)
        starts_hz = _to_hz(np.linspace(low, high, self.num_mels + 2), self.scale)[:-2]
        return int(np.searchsorted(starts_hz, hz))

    def frames(self, samples: int) -> int:
        """Frames that a wave of so many samples gives."""
        return samples // self.hop_samples


SPEECH = MelSpec(n_fft=1024, window_samples=640, num_mels=80, scale="htk", norm=None, power=1.0, floor=1e-4)


def log_mel(wave_BS: Tensor, spec: MelSpec) -> Tensor:
    """Log-mel frames of mono audio, computed in float32 even under autocast.

    Takes   wave_BS floating point at spec.rate_hz, on any device. Rows of unequal length: take each alone, or
            accept that the last frames of a zero-padded row see zeros where a row alone sees its mirror.
    Gives   (B, F, M) float32, natural log, at least log(spec.floor); F = S // hop. Frame f is centred on
            sample f * hop.
    Raises  ShapeError if not (B, S) of floats, or shorter than one hop.
    """
    if wave_BS.ndim != 2 or not wave_BS.is_floating_point():
        raise ShapeError(
            f"log_mel: expected a floating-point wave (B, S), got {wave_BS.dtype} {tuple(wave_BS.shape)}"
        )
    samples = wave_BS.shape[1]
    if samples < spec.hop_samples:
        raise ShapeError(f"log_mel: expected at least one hop of {spec.hop_samples} samples, got {samples}")
    with torch.autocast(wave_BS.device.type, enabled=False):
        power_BFN = _power(wave_BS.float(), spec)[:, : spec.frames(samples)]
        spectrum_BFN = power_BFN.clamp_min(TINY_POWER).sqrt() if spec.power == 1.0 else power_BFN
        mel_BFM = spectrum_BFN @ _device_bank(spec, wave_BS.device)
        return mel_BFM.clamp_min(spec.floor).log()


def filter_bank(spec: MelSpec) -> Tensor:
    """Triangular filters of the mel scale, (n_fft // 2 + 1, M) float32.

    Source  scale "slaney": linear below 1 kHz, logarithmic above (Slaney, Auditory Toolbox, 1998), as Whisper
            uses it; "htk": 2595 log10(1 + f / 700). norm "slaney": filters of equal area in Hz; None: filters
            of peak 1.
    """
    return _device_bank(spec, torch.device("cpu")).clone()


@lru_cache(maxsize=32)
def _device_bank(spec: MelSpec, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a tensor made in inference mode could never serve a training step
        return torch.from_numpy(_triangles(spec).astype(np.float32)).to(device)


def _triangles(spec: MelSpec) -> NDArray[np.float64]:
    bins_hz = np.linspace(0.0, spec.rate_hz / 2, spec.n_fft // 2 + 1)
    low, high = _to_mel(np.array([spec.f_min_hz, spec.f_max_hz]), spec.scale)
    corners_hz = _to_hz(np.linspace(low, high, spec.num_mels + 2), spec.scale)
    widths_hz = np.diff(corners_hz)
    offsets_hz = corners_hz[None, :] - bins_hz[:, None]
    rising = -offsets_hz[:, :-2] / widths_hz[:-1]
    falling = offsets_hz[:, 2:] / widths_hz[1:]
    bank = np.maximum(0.0, np.minimum(rising, falling))
    if spec.norm == "slaney":
        bank *= 2.0 / (corners_hz[2:] - corners_hz[:-2])
    return bank


SLANEY_HZ_PER_MEL = 200.0 / 3.0
SLANEY_BREAK_HZ = 1000.0
SLANEY_BREAK_MEL = SLANEY_BREAK_HZ / SLANEY_HZ_PER_MEL
SLANEY_LOG_STEP = math.log(6.4) / 27.0


def _to_mel(hz: NDArray[np.float64], scale: str) -> NDArray[np.float64]:
    if scale == "htk":
        return np.asarray(2595.0 * np.log10(1.0 + hz / 700.0))
    above = SLANEY_BREAK_MEL + np.log(np.maximum(hz, SLANEY_BREAK_HZ) / SLANEY_BREAK_HZ) / SLANEY_LOG_STEP
    return np.where(hz < SLANEY_BREAK_HZ, hz / SLANEY_HZ_PER_MEL, above)


def _to_hz(mel: NDArray[np.float64], scale: str) -> NDArray[np.float64]:
    if scale == "htk":
        return np.asarray(700.0 * (10.0 ** (mel / 2595.0) - 1.0))
    above = SLANEY_BREAK_HZ * np.exp(SLANEY_LOG_STEP * np.maximum(mel - SLANEY_BREAK_MEL, 0.0))
    return np.where(mel < SLANEY_BREAK_MEL, mel * SLANEY_HZ_PER_MEL, above)


def _power(wave_BS: Tensor, spec: MelSpec) -> Tensor:
    """Power spectrum (B, 1 + S // hop, n_fft // 2 + 1); waves too short to be mirrored are padded with
    zeros."""
    missing = spec.n_fft // 2 + 1 - wave_BS.shape[1]
    padded_BS = torch.nn.functional.pad(wave_BS, (0, max(0, missing)))
    window = torch.hann_window(spec.window_samples, device=wave_BS.device)
    complex_BNF = torch.stft(
        padded_BS, spec.n_fft, spec.hop_samples, spec.window_samples, window, center=True, return_complex=True
    )
    return (complex_BNF.real.square() + complex_BNF.imag.square()).transpose(1, 2)
