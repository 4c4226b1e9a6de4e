"""Augmentation: small, seeded, and never in place."""

from collections.abc import Callable

import numpy as np
import pytest

from muomni.media import augment
from muomni.media.mel import MelSpec

RATE_HZ = 16_000


def tone(hz: float, seconds: float = 1.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(RATE_HZ * seconds)) / RATE_HZ)).astype(np.float32)


def peak_hz(wave: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(wave)).argmax() * RATE_HZ / len(wave))


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_speed_moves_length_and_pitch_together(factor: float) -> None:
    fast = augment.speed(tone(440), factor)
    assert fast.dtype == np.float32
    assert len(fast) == pytest.approx(RATE_HZ / factor, abs=2)
    assert peak_hz(fast) == pytest.approx(440 * factor, abs=2)


def test_gain_is_in_decibels_as_far_as_full_scale() -> None:
    np.testing.assert_allclose(augment.gain(tone(440), -6.0206), tone(440) / 2, atol=1e-4)
    loud = augment.gain(tone(440), 40)
    assert np.abs(loud).max() == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(loud / np.abs(loud).max(), tone(440) / np.abs(tone(440)).max(), atol=1e-6)


@pytest.mark.parametrize("peak", [0.3, 1.0, 1.4, 30_000.0])
def test_no_change_makes_a_square_of_a_wave(peak: float) -> None:
    wave = tone(440) * np.float32(peak / 0.3)
    for changed in (
        augment.gain(wave, 12.0),
        augment.noise(wave, 30.0, np.random.default_rng(0)),
        augment.gain(wave, 0.0),
    ):
        assert np.corrcoef(changed, wave)[0, 1] > 0.999
        assert np.mean(np.abs(changed) > 0.999 * np.abs(changed).max()) < 0.05
        assert np.abs(changed).max() <= max(1.0, peak) * 1.0001


def test_noise_has_the_asked_power() -> None:
    wave = tone(440)
    added = augment.noise(wave, 20.0, np.random.default_rng(0)) - wave
    assert 10 * np.log10(np.mean(wave**2) / np.mean(added**2)) == pytest.approx(20, abs=0.2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_formants_move_a_peak_along_the_bins(dtype: type) -> None:
    mel = np.zeros((5, 128), dtype=dtype)
    mel[:, 60] = 1
    assert augment.formants(mel, 1.1)[0].argmax() == 66
    assert augment.formants(mel, 1.1).dtype == dtype
    np.testing.assert_array_equal(augment.formants(mel, 1.0), mel)


def test_spec_augment_masks_a_little_of_short_clips() -> None:
    mel = np.random.default_rng(0).normal(size=(20, 128)).astype(np.float32)
    for seed in range(50):
        changed = augment.spec_augment(mel, np.random.default_rng(seed))
        rows = (changed != mel).all(1)
        assert rows.sum() <= 2 * 4  # a fifth of 20 frames, twice
        np.testing.assert_allclose(changed[changed != mel], mel.mean(), atol=1e-5)


def test_shift_moves_and_repeats_the_edge() -> None:
    picture = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    np.testing.assert_array_equal(augment.shift(picture, 1, 0)[1:], picture[:-1])
    np.testing.assert_array_equal(augment.shift(picture, 1, 0)[0], picture[0])
    np.testing.assert_array_equal(augment.shift(picture, 0, -2)[:, :2], picture[:, 2:])
    np.testing.assert_array_equal(augment.shift(picture, 0, 0), picture)


def test_crop_keeps_the_size_and_the_whole_at_one() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    np.testing.assert_array_equal(augment.crop(picture, 1.0, np.random.default_rng(0)), picture)
    part = augment.crop(picture, 0.5, np.random.default_rng(0))
    assert part.shape == picture.shape
    assert len(np.unique(part.reshape(-1, 3), axis=0)) <= 7 * 9


def test_flip_twice_is_nothing() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    np.testing.assert_array_equal(augment.flip(augment.flip(picture)), picture)


def test_jitter_stays_near_and_in_range() -> None:
    picture = np.full((4, 4, 3), 128, np.uint8)
    changed = [augment.jitter(picture, np.random.default_rng(seed)) for seed in range(30)]
    assert all(image.dtype == np.uint8 and abs(int(image.mean()) - 128) < 128 * 0.27 for image in changed)
    assert len({image.tobytes() for image in changed}) > 20


@pytest.mark.parametrize(
    "change",
    [
        lambda wave, mel, picture, rng: augment.gain(wave, 3),
        lambda wave, mel, picture, rng: augment.noise(wave, 10, rng),
        lambda wave, mel, picture, rng: augment.spec_augment(mel, rng),
        lambda wave, mel, picture, rng: augment.formants(mel, 0.9),
        lambda wave, mel, picture, rng: augment.crop(picture, 0.8, rng),
        lambda wave, mel, picture, rng: augment.jitter(picture, rng),
        lambda wave, mel, picture, rng: augment.shift(picture, 1, -1),
    ],
)
def test_seeded_and_never_in_place(change: Callable[..., np.ndarray]) -> None:
    rng = np.random.default_rng(1)
    inputs = [
        tone(300, 0.1),
        rng.normal(size=(9, 32)).astype(np.float32),
        rng.integers(0, 256, (8, 8, 3)).astype(np.uint8),
    ]
    before = [x.copy() for x in inputs]
    first, again = change(*inputs, np.random.default_rng(0)), change(*inputs, np.random.default_rng(0))
    np.testing.assert_array_equal(first, again)
    for x, old in zip(inputs, before):
        np.testing.assert_array_equal(x, old)


def test_warp_keeps_a_picture_where_nothing_is_asked_and_moves_it_where_it_is() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    same = augment.warp(picture, np.random.default_rng(1), degrees=0, scale=0, shear=0)
    assert np.abs(same.astype(int) - picture.astype(int)).max() <= 1
    turned = augment.warp(picture, np.random.default_rng(1), degrees=30, scale=0.2, shear=0.2)
    assert turned.shape == picture.shape
    assert turned.dtype == np.uint8
    assert (turned != picture).any()


def test_a_warped_picture_is_filled_with_the_colour_of_its_border() -> None:
    picture = np.full((32, 32, 3), 77, dtype=np.uint8)
    picture[12:20, 12:20] = 200
    corner = augment.warp(picture, np.random.default_rng(2), degrees=45, scale=0.3, shear=0.1)[0, 0]
    assert corner.tolist() == [77, 77, 77]


def test_telephone_sound_has_nothing_above_its_border() -> None:
    spec = MelSpec()
    mel_FM = np.random.default_rng(0).normal(size=(10, spec.num_mels)).astype(np.float32)
    border = spec.bin_at(4000)
    narrow = augment.narrow(mel_FM, border)
    assert 0 < border < spec.num_mels
    assert (narrow[:, border:] == mel_FM.min()).all()
    np.testing.assert_array_equal(narrow[:, :border], mel_FM[:, :border])
    assert spec.bin_at(9000) == spec.num_mels
