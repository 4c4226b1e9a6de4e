from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from spectral import log_spectral_distance

from muomni.errors import ShapeError
from muomni.media import mel
from muomni.media.mel import SPEECH, MelSpec, filter_bank, log_mel

PRESETS = pytest.mark.parametrize("spec", [MelSpec(), SPEECH], ids=["hearing", "speech"])


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("num_mels", [80, 128])
def test_filter_bank_equals_whispers(num_mels: int) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.WhisperFeatureExtractor(feature_size=num_mels).mel_filters
    ours = filter_bank(MelSpec(n_fft=400, num_mels=num_mels)).numpy()
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("norm", ["slaney", None])
@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_filter_bank_equals_transformers(scale: str, norm: str | None) -> None:
    audio_utils = pytest.importorskip("transformers.audio_utils")
    theirs = audio_utils.mel_filter_bank(513, 60, 50.0, 7600.0, 16_000, norm=norm, mel_scale=scale)
    ours = filter_bank(MelSpec(num_mels=60, f_min_hz=50, f_max_hz=7600, scale=scale, norm=norm))
    assert np.allclose(ours, theirs, atol=1e-6)


@PRESETS
def test_no_filter_is_empty_and_no_band_is_deaf(spec: MelSpec) -> None:
    bank = filter_bank(spec)
    assert (bank.amax(0) > 0).all()
    assert (bank[1:-1].amax(1) > 0).all()


def test_a_returned_bank_may_be_changed_without_harm() -> None:
    filter_bank(SPEECH).zero_()
    assert filter_bank(SPEECH).sum() > 0


@PRESETS
@pytest.mark.parametrize("samples", [160, 161, 319, 512, 513, 1024, 16_000, 16_159])
def test_frames_are_exactly_samples_by_hop(spec: MelSpec, samples: int) -> None:
    frames_BFM = log_mel(noise(2, samples), spec)
    assert frames_BFM.shape == (2, samples // 160, spec.num_mels)
    assert spec.frames(samples) == samples // 160
    assert frames_BFM.isfinite().all()


@PRESETS
def test_a_row_alone_equals_the_row_in_a_batch(spec: MelSpec) -> None:
    wave_BS = noise(3, 4000)
    alone = torch.cat([log_mel(row[None], spec) for row in wave_BS])
    assert torch.allclose(alone, log_mel(wave_BS, spec), atol=1e-5)


def test_no_sample_goes_unseen() -> None:
    """The original's stage D never looked at 20 % of the samples (B10)."""
    wave_BS = noise(1, 1600).requires_grad_()
    log_mel(wave_BS, SPEECH).sum().backward()
    assert wave_BS.grad is not None
    assert (wave_BS.grad.abs() > 0).float().mean() > 0.95


def test_a_late_sample_changes_no_early_frame() -> None:
    wave_BS = noise(1, 8000)
    poked_BS = wave_BS.clone()
    poked_BS[0, 6000:] += 1.0
    before, after = log_mel(wave_BS, MelSpec()), log_mel(poked_BS, MelSpec())
    clear = (6000 - MelSpec().window_samples // 2) // MelSpec().hop_samples
    assert torch.equal(before[:, :clear], after[:, :clear])
    assert not torch.allclose(before[:, clear + 2], after[:, clear + 2])


@PRESETS
def test_a_tone_lands_in_the_filter_at_its_frequency(spec: MelSpec) -> None:
    wave_BS = 0.5 * torch.sin(2 * math.pi * 1500.0 * torch.arange(16_000) / 16_000)[None]
    loudest = log_mel(wave_BS, spec)[0, 50].argmax()
    centre_hz = filter_bank(spec)[:, loudest].argmax() * 16_000 / spec.n_fft
    assert abs(float(centre_hz) - 1500) < 60


@pytest.mark.parametrize(("spec", "factor"), [(MelSpec(), 2.0), (SPEECH, 1.0)], ids=["power", "magnitude"])
def test_twice_as_loud_adds_the_powers_log_2(spec: MelSpec, factor: float) -> None:
    wave_BS = noise(1, 4000)
    rise = log_mel(2 * wave_BS, spec) - log_mel(wave_BS, spec)
    assert torch.allclose(rise, torch.full_like(rise, factor * math.log(2)), atol=1e-3)


@PRESETS
def test_silence_lies_on_the_floor_with_zero_gradient(spec: MelSpec) -> None:
    wave_BS = torch.zeros(1, 1600, requires_grad=True)
    frames = log_mel(wave_BS, spec)
    assert torch.allclose(frames, torch.tensor(spec.log_floor))
    frames.sum().backward()
    assert wave_BS.grad is not None
    assert wave_BS.grad.isfinite().all()


@PRESETS
def test_float32_under_autocast_and_from_half(spec: MelSpec) -> None:
    wave_BS = noise(1, 4000)
    plain = log_mel(wave_BS, spec)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(log_mel(wave_BS, spec), plain)
    assert log_mel(wave_BS.bfloat16(), spec).dtype == torch.float32


def test_inference_mode_first_then_training() -> None:
    mel._device_bank.cache_clear()
    with torch.inference_mode():
        log_mel(noise(1, 1600), SPEECH)
    wave_BS = noise(1, 1600).requires_grad_()
    log_mel(wave_BS, SPEECH).sum().backward()


@pytest.mark.gpu
def test_cuda_equals_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    wave_BS = noise(2, 8000)
    assert torch.allclose(log_mel(wave_BS.cuda(), SPEECH).cpu(), log_mel(wave_BS, SPEECH), atol=1e-3)


@pytest.mark.parametrize(
    "wave",
    [
        torch.zeros(160),
        torch.zeros(1, 1, 160),
        torch.zeros(1, 159),
        torch.zeros(1, 0),
        torch.zeros(1, 999).short(),
    ],
)
def test_wrong_waves_are_refused(wave: torch.Tensor) -> None:
    with pytest.raises(ShapeError):
        log_mel(wave, MelSpec())


@pytest.mark.parametrize(
    "wrong",
    [
        {"window_samples": 2048},
        {"hop_samples": 1280},
        {"f_max_hz": 9000},
        {"f_min_hz": 8000},
        {"power": 3.0},
        {"floor": 0.0},
        {"hops": 3},
    ],
)
def test_a_spec_that_can_not_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        MelSpec.model_validate(wrong)


@PRESETS
def test_a_spec_survives_json(spec: MelSpec) -> None:
    assert MelSpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.frame_rate_hz == 100.0


def test_spectral_distance_ignores_loudness_and_knows_equal_from_other() -> None:
    first, second = noise(2, 8000), noise(2, 8000, seed=1)
    assert log_spectral_distance(first, first, SPEECH).abs().max() == 0
    assert log_spectral_distance(first, 3 * first, SPEECH).abs().max() < 1e-3
    assert (log_spectral_distance(first, second, SPEECH) > 3).all()
    assert log_spectral_distance(first, torch.zeros_like(first), SPEECH).isfinite().all()
    with pytest.raises(ShapeError):
        log_spectral_distance(first, second[:, :-1], SPEECH)
