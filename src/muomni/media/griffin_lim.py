"""Log-mel frames back to sound without a learned vocoder."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muomni.errors import DataError, ShapeError
from muomni.media.mel import MelSpec, filter_bank, log_mel

NNLS_UPDATES = 60
PEAK = 0.95
LOUDEST = 0.95  # where a wave as loud as its frames would go beyond full scale
LOUD_NATS = 3.0  # bins so far below the loudest one still count when the loudness is compared
MAX_GAIN = 30.0  # a whole utterance of near-silence stays near-silent instead of becoming loud noise


def invert(
    log_mel_FM: Tensor, spec: MelSpec, *, iterations: int = 32, momentum: float = 0.99, seed: int = 0
) -> Tensor:
    """A wave whose log-mel frames are close to those given.

    Takes   log_mel_FM (F, M) natural log, as `mel.log_mel` with the same spec gives it; the spec says the
            domain, nothing is guessed.
    Gives   (F * hop,) float32 at spec.rate_hz, peak 0.95 (less where that needs a gain above 30); equal for
            equal seeds. Bins at the floor count as empty, so pure silence gives zeros.
    Raises  ShapeError if not (F >= 1, spec.num_mels); DataError(nonfinite).
    Source  Griffin and Lim 1984; momentum as in Perraudin, Balazs and Søndergaard 2013, written a = r - m /
            (1 + m) * previous; non-negative least squares by multiplicative updates, Lee and Seung 2001.
    """
    if log_mel_FM.ndim != 2 or log_mel_FM.shape[1] != spec.num_mels or log_mel_FM.shape[0] < 1:
        raise ShapeError(
            f"griffin_lim: expected log-mel frames (F, {spec.num_mels}), got {tuple(log_mel_FM.shape)}"
        )
    with torch.no_grad(), torch.autocast(log_mel_FM.device.type, enabled=False):
        mel_FM = log_mel_FM.float().exp()
        if not torch.isfinite(mel_FM).all():
            raise DataError(
                "nonfinite", "griffin_lim: the log-mel frames hold NaN, infinite or overflowing values"
            )
        mel_FM = torch.where(mel_FM > spec.floor * (1.0 + 1e-4), mel_FM, 0.0)
        magnitude_FN = _linear(mel_FM, spec) ** (1.0 / spec.power)
        samples = len(mel_FM) * spec.hop_samples
        wave_S = _with_phase(magnitude_FN, spec, iterations, momentum, seed)[:samples]
        peak = float(wave_S.abs().max())
        return wave_S * min(PEAK / peak, MAX_GAIN) if peak > 0.0 else wave_S


def sound(log_mel_FM: Tensor, spec: MelSpec, *, seed: int = 0) -> NDArray[np.float32]:
    """A wave of log-mel frames, as loud as the frames say (`invert` alone gives every wave the same peak).

    Takes   log_mel_FM (F, M) on any device.
    Gives   (F * hop,) float32 at spec.rate_hz, in [-0.95, 0.95]; equal for equal seeds.
    Raises  ShapeError and DataError as `invert`.
    """
    wave_S = invert(log_mel_FM, spec, seed=seed).cpu()
    target_FM = log_mel_FM.float().cpu()
    loud_FM = target_FM > target_FM.max() - LOUD_NATS
    if not bool(wave_S.any()):
        return np.asarray(wave_S.numpy(), np.float32)
    gain = float((target_FM - log_mel(wave_S[None], spec)[0])[loud_FM].mean()) / spec.power
    scaled_S = wave_S.numpy() * np.exp(gain)
    return np.asarray(np.clip(scaled_S, -LOUDEST, LOUDEST), np.float32)


def _linear(mel_FM: Tensor, spec: MelSpec) -> Tensor:
    """The non-negative spectrum (F, N) whose mel frames are nearest to those given."""
    bank_NM, inverse_MN = (part.to(mel_FM.device) for part in _banks(spec))
    spectrum_FN = (mel_FM @ inverse_MN).clamp_min_(1e-6 * spec.floor)
    wanted_FN = mel_FM @ bank_NM.T
    for _ in range(NNLS_UPDATES):
        spectrum_FN *= wanted_FN / (spectrum_FN @ bank_NM @ bank_NM.T).clamp_min_(1e-20)
    return spectrum_FN


def _with_phase(magnitude_FN: Tensor, spec: MelSpec, iterations: int, momentum: float, seed: int) -> Tensor:
    """Griffin-Lim: find phases under which overlapping frames agree; gives at least F * hop samples."""
    # A wave of F * hop samples has F + 1 centred frames, and mirroring needs more than half an FFT of
    # samples.
    frames = max(len(magnitude_FN), spec.n_fft // 2 // spec.hop_samples + 1)
    magnitude_NF = torch.cat(
        [magnitude_FN, magnitude_FN[-1:].expand(frames + 1 - len(magnitude_FN), -1)]
    ).T.contiguous()
    window = torch.hann_window(spec.window_samples, device=magnitude_FN.device)

    def wave(angles_NF: Tensor) -> Tensor:
        return torch.istft(
            magnitude_NF * angles_NF,
            spec.n_fft,
            spec.hop_samples,
            spec.window_samples,
            window,
            length=frames * spec.hop_samples,
        )

    generator = torch.Generator().manual_seed(
        seed
    )  # on the CPU, so that every device starts from the same phases
    turns_NF = torch.rand(magnitude_NF.shape, generator=generator).to(magnitude_NF.device)
    angles_NF = torch.polar(torch.ones_like(magnitude_NF), 2.0 * torch.pi * turns_NF)
    previous_NF = torch.zeros_like(angles_NF)
    for _ in range(iterations):
        rebuilt_NF = torch.stft(
            wave(angles_NF), spec.n_fft, spec.hop_samples, spec.window_samples, window, return_complex=True
        )
        ahead_NF = rebuilt_NF - momentum / (1.0 + momentum) * previous_NF
        angles_NF = ahead_NF / ahead_NF.abs().clamp_min_(1e-16)
        previous_NF = rebuilt_NF
    return wave(angles_NF)


@lru_cache(maxsize=8)
def _banks(spec: MelSpec) -> tuple[Tensor, Tensor]:
    """The filter bank (N, M) and its pseudo-inverse (M, N)."""
    bank_NM = filter_bank(spec)
    return bank_NM, torch.linalg.pinv(bank_NM.double()).float()
