from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from muomni.errors import DataError, ShapeError
from muomni.media import audio, decoders


def tone(rate_hz: int, seconds: float = 0.5, hz: float = 440.0) -> NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate_hz * seconds)) / rate_hz)


def reason(path: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        audio.read(path, **options)  # type: ignore[arg-type]
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
def test_any_rate_keeps_pitch_and_length(tmp_path: Path, rate_hz: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(rate_hz), rate_hz)
    wave_S = audio.read(tmp_path / "a.wav")
    assert wave_S.dtype == np.float32
    assert abs(len(wave_S) - 8000) <= 1
    assert np.argmax(np.abs(np.fft.rfft(wave_S, 16_000))) == pytest.approx(440, abs=1)
    assert np.abs(wave_S).max() == pytest.approx(0.5, abs=0.05)


def test_stereo_is_the_mean_of_its_channels(tmp_path: Path) -> None:
    left, right = tone(48_000), tone(48_000, hz=1000.0)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 48_000, subtype="FLOAT")
    assert np.allclose(audio.read(tmp_path / "a.wav", 48_000), (left + right) / 2, atol=1e-6)


def test_many_channels_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "BLOCK_VALUES", 100)
    wave = np.random.default_rng(0).uniform(-1, 1, (1000, 8)).astype(np.float32)
    for subtype, atol in (("FLOAT", 1e-6), ("PCM_16", 1 / 32768)):
        soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype=subtype)
        assert np.allclose(audio.read(tmp_path / "a.wav"), wave.mean(1), atol=atol)


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_a_window_equals_the_cut_of_the_whole(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 32_000), 16_000)
    whole_S = audio.read(path)
    assert np.array_equal(audio.read(path, start_s=0.5, end_s=1.25), whole_S[8000:20_000])
    assert np.array_equal(audio.read(path, start_s=1.5), whole_S[24_000:])
    assert np.array_equal(audio.read(path, end_s=99.0), whole_S)


def test_the_limit_is_on_the_window_not_the_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(16_000, 2.0), 16_000)
    assert reason(tmp_path / "a.wav", max_s=1.0) == "too_long"
    assert len(audio.read(tmp_path / "a.wav", start_s=1.0, max_s=1.0)) == 16_000


@pytest.mark.parametrize(
    ("start_s", "end_s"), [(-1.0, None), (1.0, 0.5), (0.2, 0.2), (float("nan"), None), (None, float("nan"))]
)
def test_a_senseless_window_is_a_bad_row(tmp_path: Path, start_s: float | None, end_s: float | None) -> None:
    soundfile.write(tmp_path / "a.wav", tone(16_000), 16_000)
    assert reason(tmp_path / "a.wav", start_s=start_s, end_s=end_s) == "bad_row"


def test_a_window_behind_the_end_is_empty(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(16_000), 16_000)
    assert reason(tmp_path / "a.wav", start_s=3.0) == "empty"
    assert reason(tmp_path / "a.wav", start_s=float("inf")) == "bad_row"


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert reason(tmp_path / "none.wav") == "missing"
    assert reason(tmp_path) == "missing"


def test_empty_files(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    assert reason(tmp_path / "a.wav") == "empty"
    soundfile.write(tmp_path / "b.wav", np.zeros(0), 16_000)
    assert reason(tmp_path / "b.wav") == "empty"


def test_text_and_noise_are_undecodable(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("not a sound at all, only words")
    assert reason(tmp_path / "a.wav") == "undecodable"
    (tmp_path / "b.flac").write_bytes(np.random.default_rng(0).bytes(4000))
    assert reason(tmp_path / "b.flac") == "undecodable"


@pytest.mark.parametrize("kind", ["wav", "flac"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_torn_files_are_refused_whole(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 48_000), 16_000)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert reason(path) == "undecodable"


def test_a_wav_from_a_pipe_has_no_true_size_and_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(16_000), 16_000)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    assert len(audio.read(path)) == 8000


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_one_bad_value_is_enough(tmp_path: Path, poison: float) -> None:
    wave = tone(16_000)
    wave[4000] = poison
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    assert reason(tmp_path / "a.wav") == "nonfinite"
    assert len(audio.read(tmp_path / "a.wav", end_s=0.2)) == 3200


def test_silence_constant_and_dither_are_silent(tmp_path: Path) -> None:
    dither = np.random.default_rng(0).normal(0, 1e-5, 8000)
    for name, wave in {"zero": np.zeros(8000), "constant": np.full(8000, 0.3), "dither": dither}.items():
        soundfile.write(tmp_path / f"{name}.wav", wave, 16_000, subtype="FLOAT")
        assert reason(tmp_path / f"{name}.wav") == "silent"
        assert len(audio.read(tmp_path / f"{name}.wav", allow_silent=True)) == 8000


def test_write_then_read_within_one_step_of_16_bits(tmp_path: Path) -> None:
    wave_S = tone(16_000).astype(np.float32)
    audio.write(tmp_path / "new" / "a.wav", wave_S, 16_000)
    assert soundfile.info(tmp_path / "new" / "a.wav").subtype == "PCM_16"
    assert np.allclose(audio.read(tmp_path / "new" / "a.wav"), wave_S, atol=1.01 / 32768)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.wav"]


def test_write_clips_instead_of_wrapping(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", np.array([2.0, -2.0, 0.0]), 16_000)
    assert np.allclose(audio.read(tmp_path / "a.wav"), [1.0, -1.0, 0.0], atol=1e-4)


def test_write_refuses_what_is_no_wave_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    audio.write(path, tone(16_000), 16_000)
    before = path.read_bytes()
    with pytest.raises(ShapeError):
        audio.write(path, np.zeros((2, 100)), 16_000)
    with pytest.raises(DataError, match="NaN"):
        audio.write(path, [0.0, np.nan], 16_000)
    with pytest.raises(DataError, match="no samples"):
        audio.write(path, [], 16_000)
    assert path.read_bytes() == before


@pytest.mark.parametrize("rate_hz", [1, 999, 768_001, 2**31 - 1])
def test_rates_that_no_recording_has_are_refused_before_they_fill_the_memory(rate_hz):
    stream = io.BytesIO()
    soundfile.write(
        stream, np.random.default_rng(0).standard_normal(500) * 0.1, 16000, format="WAV", subtype="PCM_16"
    )
    content = bytearray(stream.getvalue())
    content[24:28] = rate_hz.to_bytes(4, "little")
    with pytest.raises(DataError, match="sound in memory: expected 1000 to 768000 Hz") as caught:
        audio.read(bytes(content))
    assert caught.value.reason == "undecodable"


def test_a_message_is_the_same_in_each_run():
    with pytest.raises(DataError) as caught:
        audio.read(b"no sound at all")
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize("scale", [32_768.0, 32_767.0, 5000.0, 2.0**23, 2.0**31])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_integers_written_as_floats_are_scaled_alike_in_every_window(
    tmp_path: Path, scale: float, subtype: str
) -> None:
    """A quiet stretch of such a file is no loud one."""
    wave = np.concatenate([1e-4 * tone(16_000, 40.0), tone(16_000, 1.0)])
    path = tmp_path / "a.wav"
    soundfile.write(path, wave * scale, 16_000, subtype=subtype)
    full = next(full for full in (2.0**15, 2.0**23, 2.0**31) if scale <= full)
    whole_S = audio.read(path)
    assert np.allclose(whole_S, wave * (scale / full), atol=1e-6)
    assert np.array_equal(audio.read(path, start_s=3.0, end_s=4.0, allow_silent=True), whole_S[48_000:64_000])
    assert np.array_equal(audio.read(path, start_s=40.2, end_s=40.7), whole_S[643_200:651_200])


@pytest.mark.parametrize("peak", [1.0001, 1.3, 3.9])
def test_floats_a_little_beyond_full_scale_are_left_as_they_are(tmp_path: Path, peak: float) -> None:
    soundfile.write(tmp_path / "a.wav", tone(16_000) * 2 * peak, 16_000, subtype="FLOAT")
    assert np.allclose(audio.read(tmp_path / "a.wav"), tone(16_000) * 2 * peak, atol=1e-6)


def test_single_damaged_samples_do_not_scale_a_file(tmp_path: Path) -> None:
    for value in (1e9, 3e4, 1e30):
        wave = tone(16_000)
        wave[4000] = value
        soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
        assert reason(tmp_path / "a.wav") == "nonfinite"
    soundfile.write(tmp_path / "a.wav", tone(16_000) * 1e15, 16_000, subtype="FLOAT")
    assert reason(tmp_path / "a.wav") == "nonfinite"


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "ogg"])
def test_a_channel_by_its_number(tmp_path: Path, kind: str) -> None:
    waves = np.stack([tone(16_000, 1.0, 300), tone(16_000, 1.0, 700)], 1)
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, waves, 16_000)
    for channel in (0, 1):
        wave_S = audio.read(path, channel=channel, start_s=0.2)
        assert np.argmax(np.abs(np.fft.rfft(wave_S, 16_000))) == pytest.approx((300, 700)[channel], abs=1)
    assert reason(path, channel=2) == "bad_row"
    assert reason(path, channel=-1) == "bad_row"


def test_channels_that_cancel_each_other_are_no_silence(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([tone(16_000), -tone(16_000)], 1), 16_000)
    with pytest.raises(DataError, match=r"its channels cancel each other \(name the one to take"):
        audio.read(tmp_path / "a.wav")
    assert len(audio.read(tmp_path / "a.wav", channel=1)) == 8000
