from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spectral import log_spectral_distance
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from muomni.errors import DataError, ShapeError
from muomni.media import audio, griffin_lim
from muomni.media.mel import SPEECH, MelSpec, filter_bank, log_mel

PRESETS = pytest.mark.parametrize("spec", [MelSpec(), SPEECH], ids=["hearing", "speech"])
SPEECH_FOLDER = Path(os.environ.get("MUOMNI_DATA", Path(__file__).parents[3] / "shared" / "data")) / "speech"


def chirp_and_formants(samples: int = 24_000) -> Tensor:
    """A gliding pulse train through two resonances, with a pause in the middle."""
    time_s = np.arange(samples) / 16_000
    pitch_hz = 110 + 60 * time_s / time_s[-1]
    source = np.diff(np.floor(np.cumsum(pitch_hz) / 16_000), prepend=0.0)
    spectrum, grid_hz = np.fft.rfft(source), np.fft.rfftfreq(samples, 1 / 16_000)
    gain = sum(
        1 / (1 + ((grid_hz - centre) / width) ** 2) for centre, width in ((600, 80), (1700, 120), (3000, 200))
    )
    wave = np.fft.irfft(spectrum * gain, samples)
    wave[samples // 2 : samples // 2 + 2000] = 0.0
    return torch.from_numpy((0.6 * wave / np.abs(wave).max()).astype(np.float32))


def textbook(log_mel_FM: Tensor, spec: MelSpec) -> Tensor:
    """The baseline: clamped pseudo-inverse, plain Griffin-Lim of as many iterations, written
    independently."""
    linear_FN = (log_mel_FM.exp() @ torch.linalg.pinv(filter_bank(spec))).clamp_min(1e-10)
    magnitude_NF = linear_FN.pow(1 / spec.power).T
    window = torch.hann_window(spec.window_samples)
    frame = (spec.n_fft, spec.hop_samples, spec.window_samples, window)
    samples = (magnitude_NF.shape[1] - 1) * spec.hop_samples
    angles = torch.polar(
        torch.ones_like(magnitude_NF),
        6.2832 * torch.rand(magnitude_NF.shape, generator=torch.Generator().manual_seed(0)),
    )
    for _ in range(32):
        rebuilt = torch.stft(
            torch.istft(magnitude_NF * angles, *frame, length=samples), *frame, return_complex=True
        )
        angles = rebuilt / rebuilt.abs().clamp_min(1e-16)
    return torch.istft(magnitude_NF * angles, *frame, length=samples)


def distances(wave_S: Tensor, spec: MelSpec) -> tuple[float, float]:
    """Log-spectral distance in dB of our round trip and of the textbook's."""
    frames = log_mel(wave_S[None], spec)[0]
    ours, theirs = griffin_lim.invert(frames, spec), textbook(frames, spec)
    shortest = len(theirs)
    first, second, third = (wave[None, :shortest] for wave in (wave_S, ours, theirs))
    return float(log_spectral_distance(first, second, spec)), float(log_spectral_distance(first, third, spec))


@PRESETS
def test_a_synthetic_voice_returns_better_than_by_the_textbook(spec: MelSpec) -> None:
    ours, theirs = distances(chirp_and_formants(), spec)
    assert ours < 0.98 * theirs


@pytest.mark.real
@PRESETS
def test_real_speech_returns_better_than_by_the_textbook(spec: MelSpec) -> None:
    if not SPEECH_FOLDER.is_dir():
        pytest.skip("no real speech here")
    for path in islice(sorted(SPEECH_FOLDER.glob("*.flac")), 3):
        ours, theirs = distances(torch.from_numpy(audio.read(path, end_s=4.0)), spec)
        assert ours < 0.98 * theirs, path.name


@PRESETS
def test_the_round_trip_returns_the_mel_itself(spec: MelSpec) -> None:
    wave_S = chirp_and_formants()
    frames = log_mel(wave_S[None], spec)[0]
    back_S = griffin_lim.invert(frames, spec)
    again = log_mel(back_S[None] * (wave_S.std() / back_S.std()), spec)[0]
    assert (frames - again).abs().mean() < 0.5 * (frames - frames.mean(0)).abs().mean()


@PRESETS
def test_pitches_return_where_they_were(spec: MelSpec) -> None:
    """The original gave 422, 984 and 2062 Hz for 300, 900 and 2200 (B42)."""
    time_s = torch.arange(16_000) / 16_000
    wave_S = sum(0.2 * torch.sin(2 * torch.pi * hz * time_s) for hz in (300, 900, 2200))
    assert isinstance(wave_S, Tensor)
    back_S = griffin_lim.invert(log_mel(wave_S[None], spec)[0], spec)
    magnitude = torch.fft.rfft(back_S * torch.hann_window(16_000)).abs()
    for hz in (300, 900, 2200):
        around = magnitude[hz - 120 : hz + 120]
        assert abs(int(around.argmax()) - 120) <= 25
        assert around.max() > 10 * magnitude.median()


@PRESETS
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 80, 128])
def test_every_length_gives_frames_times_hop(spec: MelSpec, frames: int) -> None:
    """Also where F <= M, which the original took for a transposed matrix (B43)."""
    wave_S = griffin_lim.invert(
        log_mel(chirp_and_formants()[None, : frames * 160], spec)[0], spec, iterations=4
    )
    assert wave_S.shape == (frames * spec.hop_samples,)
    assert wave_S.dtype == torch.float32
    assert wave_S.isfinite().all()
    assert wave_S.abs().max() == pytest.approx(0.95, abs=1e-4)


@PRESETS
def test_silence_stays_silent(spec: MelSpec) -> None:
    assert torch.equal(
        griffin_lim.invert(torch.full((20, spec.num_mels), spec.log_floor), spec), torch.zeros(3200)
    )
    nearly = griffin_lim.invert(torch.full((20, spec.num_mels), spec.log_floor + 0.5), spec)
    assert nearly.abs().max() < 0.1
    assert griffin_lim.invert(torch.full((20, spec.num_mels), -80.0), spec).abs().max() == 0


def test_the_pause_of_a_loud_wave_stays_quiet() -> None:
    wave_S = chirp_and_formants()
    back_S = griffin_lim.invert(log_mel(wave_S[None], SPEECH)[0], SPEECH)
    assert back_S[12_600:13_400].square().mean() < 1e-3 * back_S.square().mean()


def test_seeds_repeat_and_differ() -> None:
    frames = log_mel(chirp_and_formants(8000)[None], SPEECH)[0]
    first, second, other = (griffin_lim.invert(frames, SPEECH, seed=seed, iterations=4) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.allclose(first, other)


def test_autocast_and_global_randomness_change_nothing() -> None:
    frames = log_mel(chirp_and_formants(8000)[None], SPEECH)[0]
    plain = griffin_lim.invert(frames, SPEECH, iterations=4)
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(griffin_lim.invert(frames, SPEECH, iterations=4), plain)


def test_more_iterations_fit_better() -> None:
    wave_S = chirp_and_formants()
    frames = log_mel(wave_S[None], SPEECH)[0]
    few, many = (griffin_lim.invert(frames, SPEECH, iterations=count)[None] for count in (1, 32))
    assert log_spectral_distance(many, wave_S[None], SPEECH) < log_spectral_distance(
        few, wave_S[None], SPEECH
    )


@pytest.mark.parametrize("shape", [(0, 80), (80,), (1, 5, 80), (80, 128)])
def test_wrong_shapes_are_refused_never_guessed(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="80"):
        griffin_lim.invert(torch.zeros(shape), SPEECH)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 100.0])
def test_poison_is_refused_not_turned_into_a_tone(poison: float) -> None:
    frames = torch.zeros(10, 80)
    frames[3, 3] = poison
    with pytest.raises(DataError) as caught:
        griffin_lim.invert(frames, SPEECH)
    assert caught.value.reason == "nonfinite"


class Work(TorchDispatchMode):
    """Counts the transforms, the products and the numbers that are written."""

    def __init__(self) -> None:
        super().__init__()
        self.transforms = self.products = self.written = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.transforms += "_fft_" in func.__name__
        self.products += func.__name__.startswith(("mm", "addmm", "bmm"))
        self.written += sum(
            leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and not leaf._is_view()
        )
        return out


def work(frames: int, iterations: int) -> Work:
    wave_S = chirp_and_formants(frames * SPEECH.hop_samples)
    frames_FM = log_mel(wave_S[None], SPEECH)[0]
    griffin_lim.invert(frames_FM, SPEECH, iterations=1)  # the filter bank is inverted once and for all
    with Work() as counted:
        griffin_lim.invert(frames_FM, SPEECH, iterations=iterations)
    return counted


def test_an_iteration_costs_two_transforms_and_all_grows_with_the_length() -> None:
    """How long that takes is told by `python -m benchmarks.spine`: a test that measures time is red on a
    slower chip."""
    short, once, long = work(50, 8), work(50, 1), work(200, 8)
    assert short.transforms == long.transforms == 2 * 8 + 1
    assert once.transforms == 2 * 1 + 1
    assert short.products == once.products == long.products == 2 + 2 * griffin_lim.NNLS_UPDATES
    assert long.written < 4.1 * short.written
    numbers_per_frame = long.written / 200 / (SPEECH.n_fft // 2 + 1)
    assert numbers_per_frame < 8 * 30 + griffin_lim.NNLS_UPDATES * 8
