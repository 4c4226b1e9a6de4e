"""What data check says of one picture or sound: lengths that differ, scales, and second channels that hold
another sound."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from PIL import Image

from muomni.data.cache import Cache
from muomni.data.check import media_stats
from muomni.data.check.checker import check
from muomni.data.check.findings import severity
from muomni.data.conversation import Conversations, MediaSpec, read_wave
from muomni.data.sample import AudioPart, ImagePart, parse
from muomni.data.source import Source
from muomni.data.utterances import SpeechAugment, Utterances, duration_s
from muomni.errors import DataError
from muomni.media.mel import MelSpec
from muomni.stages.coded import _digest
from muomni.tokens.bpe import Tokenizer

RATE_HZ = 16_000


def voice(seed: int, seconds: float = 2.0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    time_S = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    tones = sum(
        np.sin(2 * np.pi * (hz * time_S + rng.uniform(1, 9) * np.sin(2 * np.pi * rng.uniform(1, 4) * time_S)))
        for hz in rng.uniform(120, 3000, 5)
    )
    return (0.08 * tones).astype(np.float32)


def turns(first: int, second: int) -> NDArray[np.float32]:
    """A conversation of two microphones: each voice is heard 10 dB weaker in the other's channel."""
    is_first = (np.arange(2 * RATE_HZ) // (RATE_HZ // 2)) % 2 == 0
    one, other = voice(first) * is_first, voice(second) * ~is_first
    return np.stack([one + 0.3 * other, other + 0.3 * one], 1)


def room(seed: int) -> NDArray[np.float32]:
    """One voice in two microphones that stand apart: another delay, level and echo."""
    wave_S, later_S = voice(seed), np.roll(voice(seed), 150)
    return np.stack([wave_S + 0.3 * np.roll(wave_S, 900), 0.6 * later_S + 0.3 * np.roll(later_S, 1300)], 1)


def odd(path: Path, **part: object) -> dict[str, str]:
    return dict(media_stats.examine(AudioPart(path=str(path), **part)).oddities)  # type: ignore[arg-type]


SIDES = {
    "two voices at once": (np.stack([voice(1), voice(2)], 1), "another sound in channel 1"),
    "two voices by turns": (turns(3, 4), "another sound in channel 1"),
    "opposite signs": (np.stack([voice(5), -0.9 * voice(5)], 1), "channel 1 cancels channel 0"),
    "a third microphone": (np.stack([voice(1), voice(1), voice(7)], 1), "another sound in channel 2"),
    "the same twice": (np.stack([voice(6), voice(6)], 1), ""),
    "a weaker copy": (np.stack([voice(6), 0.2 * voice(6)], 1), ""),
    "one side silent": (np.stack([voice(6), 0 * voice(6)], 1), ""),
    "two microphones": (room(8), ""),
}


@pytest.mark.parametrize("name", SIDES)
def test_a_second_channel_with_another_sound_is_told(tmp_path: Path, name: str) -> None:
    waves_SC, told = SIDES[name]
    soundfile.write(tmp_path / "a.wav", waves_SC, RATE_HZ)
    found = odd(tmp_path / "a.wav")
    assert ("channels_differ" in found) == bool(told)
    if told:
        assert told in found["channels_differ"]
        assert severity("channels_differ") == "warning"
        assert "channels_differ" not in odd(tmp_path / "a.wav", channel=0)


def test_a_channel_is_read_alone_and_kept_apart(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([voice(1), voice(2)], 1), RATE_HZ)
    first, second, both = (
        AudioPart(path=str(tmp_path / "a.wav"), channel=channel) for channel in (0, 1, None)
    )
    assert np.abs(read_wave(first, RATE_HZ) - voice(1)).max() < 1e-4
    assert np.abs(read_wave(second, RATE_HZ) - voice(2)).max() < 1e-4
    assert np.abs(read_wave(both, RATE_HZ) - (voice(1) + voice(2)) / 2).max() < 1e-4
    assert len({media_stats.examine(part).key for part in (first, second, both)}) == 3
    samples = [
        parse(
            {
                "id": f"s{number}",
                "group": "g",
                "messages": [
                    {"role": "user", "content": [part.model_dump()]},
                    {"role": "assistant", "content": "so"},
                ],
            }
        )
        for number, part in enumerate((first, second, both))
    ]
    tokenizer = Tokenizer.train(["so it is, is it so?"] * 3, 275)
    kept = Conversations(samples, tokenizer, MediaSpec(mel=MelSpec()), 200, cache=Cache(1 << 24))
    mels = [kept.item(number, np.random.default_rng(0)).media["audio"][0] for number in (0, 1, 2, 0, 1, 2)]
    assert all(np.array_equal(mels[number], mels[number + 3]) for number in range(3))
    assert not np.array_equal(mels[0], mels[1])
    assert not np.array_equal(mels[0], mels[2])
    same = [sample.model_copy(update={"id": "s"}) for sample in samples]
    assert len({_digest(sample, {}) for sample in same}) == 3


@pytest.mark.parametrize("channel", [1, 7])
def test_a_channel_that_is_not_there_is_a_bad_row(tmp_path: Path, channel: int) -> None:
    soundfile.write(tmp_path / "a.wav", voice(1), RATE_HZ)
    with pytest.raises(
        DataError, match=r"a\.wav: expected a channel of the file, which has one channel, got"
    ) as caught:
        media_stats.examine(AudioPart(path=str(tmp_path / "a.wav"), channel=channel))
    assert caught.value.reason == "bad_row"
    with pytest.raises(DataError):
        parse(
            {"messages": [{"role": "user", "content": [{"type": "audio", "path": "a.wav", "channel": -1}]}]}
        )


def test_two_channels_of_one_file_are_two_sounds_for_data_check(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([voice(1), voice(2)], 1), RATE_HZ)
    rows = [
        {
            "id": str(number),
            "group": "g",
            "messages": [
                {"role": "user", "content": [{"type": "audio", "path": "a.wav", **more}]},
                {"role": "assistant", "content": "so"},
            ],
        }
        for number, more in enumerate(({"channel": 0}, {"channel": 1}, {"channel": 2}, {}))
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = check(Source(path="m.jsonl"), tmp_path)
    assert report.sounds == 3
    assert {
        finding.reason: finding.where.rpartition(":")[2]
        for finding in report.findings
        if finding.reason in ("bad_row", "channels_differ")
    } == {
        "bad_row": "3",
        "channels_differ": "4",
    }
    assert "duplicate" not in report.counts


def encoded(form: str, subtype: str | None, wave: NDArray[np.float32]) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, wave, RATE_HZ, format=form, subtype=subtype)
    return stream.getvalue()


def test_lengths_that_differ_from_the_header_are_told(tmp_path: Path) -> None:
    plain = encoded("WAV", "PCM_16", voice(1))
    stream = bytearray(plain)
    stream[4:8] = stream[40:44] = struct.pack("<I", 0xFFFF_FFFF)
    short = bytearray(plain)
    short[40:44] = struct.pack("<I", RATE_HZ)
    one, other = encoded("MP3", None, voice(1)), encoded("MP3", None, voice(2))
    ogg = encoded("OGG", "VORBIS", np.concatenate([voice(seed) for seed in range(8)]))
    for name, content, reason, words in (
        ("a.wav", plain, None, ""),
        ("b.wav", bytes(stream), "unfilled_length", "a stream's placeholder; 2.00 s are there"),
        ("c.wav", bytes(short), "length_differs", "got 48000 bytes, which are not read"),
        ("d.mp3", one, None, ""),
        ("f.ogg", ogg, None, ""),
        ("g.ogg", ogg[: ogg.rindex(b"OggS")], "length_differs", "got one that breaks off"),
        ("e.mp3", one + other, "length_differs", "expected the 2.00 s that the header announces, got 4."),
    ):
        (tmp_path / name).write_bytes(content)
        found = odd(tmp_path / name)
        assert set(found) == ({reason} if reason else set()), name
        assert reason is None or words in found[reason]
        assert duration_s(AudioPart(path=str(tmp_path / name))) == pytest.approx(
            media_stats.examine(AudioPart(path=str(tmp_path / name))).seconds, abs=0.01
        )


def test_floats_beyond_full_scale_are_told(tmp_path: Path) -> None:
    for name, factor, reason in (
        ("a", 1.0, None),
        ("b", 3.0 / np.abs(voice(1)).max(), "over_full_scale"),
        ("c", 32_767, "scaled"),
        ("d", 2.0**23, "scaled"),
    ):
        soundfile.write(tmp_path / f"{name}.wav", voice(1) * factor, RATE_HZ, subtype="FLOAT")
        assert set(odd(tmp_path / f"{name}.wav")) == ({reason} if reason else set())


def test_a_wave_beyond_full_scale_is_kept_whole_for_augmentation(tmp_path: Path) -> None:
    wave_S = voice(1) * (2.5 / np.abs(voice(1)).max())
    soundfile.write(tmp_path / "a.wav", wave_S, RATE_HZ, subtype="FLOAT")
    sample = parse(
        {
            "id": "a",
            "group": "g",
            "messages": [
                {"role": "user", "content": [{"type": "audio", "path": str(tmp_path / "a.wav")}]},
                {"role": "assistant", "content": "so"},
            ],
        }
    )
    spec = MelSpec(floor=1e-6)  # above what 16 bits round off
    stored, full_scale = Utterances([sample], spec, changes=SpeechAugment(gain_db=(0.0, 0.0)))._read_wave(
        sample.audios[0]
    )
    assert np.abs(stored / 32767 * full_scale - wave_S).max() < 1e-4
    plain = Utterances([sample], spec).item(0, np.random.default_rng(0)).mel_FM
    changed = (
        Utterances([sample], spec, changes=SpeechAugment(gain_db=(0.0, 0.0)))
        .item(0, np.random.default_rng(0))
        .mel_FM
    )
    assert np.abs(plain - changed).mean() < 0.02


def test_a_file_is_read_once_and_a_long_recording_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "a.wav", voice(1), RATE_HZ)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    opened: list[str] = []
    plain_open = open

    def counted(path: str, *rest: object, **more: object) -> object:
        opened.append(Path(str(path)).name)
        return plain_open(path, *rest, **more)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", counted)
    monkeypatch.setattr("io.open", counted)
    media_stats.examine(AudioPart(path=str(tmp_path / "a.wav")))
    media_stats.examine(ImagePart(path=str(tmp_path / "a.png")))
    assert opened == ["a.wav", "a.png"]
    for start in (0.0, 0.5, 1.0):
        media_stats.examine(AudioPart(path=str(tmp_path / "a.wav"), start=start, end=start + 0.4))
    assert opened.count("a.wav") <= 1 + 3 + 1
