"""Speech with its words: refused with a reason, never cut, changed anew each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muomni.data.sample import Sample, parse
from muomni.data.utterances import Crops, SpeechAugment, Utterances, duration_s, spoken
from muomni.errors import DataError
from muomni.media import audio
from muomni.media.mel import MelSpec
from muomni.tokens.alphabet import Alphabet

RNG = np.random.default_rng


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("speech")
    for name, seconds, hz in (("short", 0.2, 300), ("long", 1.5, 500), ("fast", 1.0, 16000)):
        rate = 16000 if hz != 16000 else 22050
        times = np.arange(int(rate * seconds)) / rate
        audio.write(
            out / f"{name}.wav",
            (0.4 * np.sin(2 * np.pi * 440 * times) * np.hanning(len(times))).astype(np.float32),
            rate,
        )
    (out / "broken.wav").write_bytes(b"RIFF")
    return out


def said(folder: Path, name: str, answer: str, **extra: Any) -> Sample:
    sound = {"type": "audio", "path": str(folder / f"{name}.wav")}
    messages = [{"role": "user", "content": [sound]}, {"role": "assistant", "content": answer}]
    return parse({"id": f"{name}-{answer[:5]}", "group": "g", "messages": messages, "extra": extra})


def speaking(folder: Path, name: str, text: str) -> Sample:
    sound = {"type": "audio", "path": str(folder / f"{name}.wav")}
    messages = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": [{"type": "text", "text": text}, sound]},
    ]
    return parse({"id": "speaks", "group": "g", "messages": messages})


def test_an_utterance_is_its_mel_text_and_symbols(folder: Path) -> None:
    item = Utterances([said(folder, "long", "one two")], MelSpec(), pad_s=0.1).item(0, RNG(0))
    assert item.mel_FM.shape == (170, 128)
    assert item.mel_FM.dtype == np.float32
    assert item.text == "one two"
    assert Alphabet().decode(item.symbols) == "one two"


def test_the_words_are_the_answer_or_what_extra_says(folder: Path) -> None:
    assert spoken(said(folder, "long", "seven"))[1] == "seven"
    assert spoken(said(folder, "long", "it is red", text="what colour is it?"))[1] == "what colour is it?"
    part, text = spoken(speaking(folder, "long", "hello"))
    assert (Path(part.path).name, text) == ("long.wav", "hello")


def test_no_sound_two_sounds_or_no_words_are_refused(folder: Path) -> None:
    one = {"type": "audio", "path": str(folder / "long.wav")}
    for content, answer in (([], "x"), ([one, one], "x"), ([one], [one])):
        messages = [{"role": "user", "content": content or "hm"}, {"role": "assistant", "content": answer}]
        with pytest.raises(DataError) as caught:
            spoken(parse({"id": "a", "group": "g", "messages": messages}))
        assert caught.value.reason == "bad_row"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("long", "x" * 65, "text_too_long"),
        ("short", "abcdefghijklmnop", "infeasible"),  # 0.4 s with its silence: 10 states
        ("short", "aaaaaa", "infeasible"),  # repeats need a blank between them
        ("broken", "hello", "undecodable"),
    ],
)
def test_what_cannot_be_learned_is_refused_with_its_reason(
    folder: Path, name: str, text: str, reason: str
) -> None:
    data = Utterances([said(folder, name, text)], MelSpec())
    with pytest.raises(DataError) as caught:
        data.item(0, RNG(0))
    assert caught.value.reason == reason


def test_the_bounds_of_what_fits(folder: Path) -> None:
    def fits(text: str, **values: Any) -> bool:
        try:
            Utterances([said(folder, "short", text)], MelSpec(), **values).item(0, RNG(0))
        except DataError:
            return False
        return True

    assert fits("abcdefghij")
    assert not fits("abcdefghijk")
    assert fits("aaaaa")
    assert fits("abcdefghijk", downsample=2)
    assert fits("abcdefghijk", downsample=0)
    assert fits("x" * 1, max_text_len=1)
    assert not fits("xy", max_text_len=1)
    assert fits("xy" * 40, max_text_len=0, downsample=0)


def test_a_cached_utterance_is_the_one_that_was_read(folder: Path) -> None:
    data = Utterances([said(folder, "long", "one")], MelSpec())
    first, second = data.item(0, RNG(0)), data.item(0, RNG(1))
    assert (first.mel_FM == second.mel_FM).all()
    first.mel_FM[:] = 0
    assert (data.item(0, RNG(0)).mel_FM == second.mel_FM).all(), "what a taker does to its copy stays its own"


@pytest.mark.parametrize(
    "values",
    [
        {"gain_db": (-6.0, 6.0)},
        {"speed": (0.8, 1.2)},
        {"noise_snr_db": (5.0, 20.0)},
        {"formant_scale": (0.8, 1.2)},
        {"time_masks": 2},
        {"freq_masks": 2},
        {
            "speed": (0.9, 1.1),
            "noise_snr_db": (10.0, 20.0),
            "gain_db": (-3.0, 3.0),
            "time_masks": 1,
            "freq_masks": 1,
        },
    ],
)
def test_changes_are_drawn_anew_and_only_from_the_given_generator(
    folder: Path, values: dict[str, Any]
) -> None:
    samples = [said(folder, "long", "one two")]
    plain = Utterances(samples, MelSpec()).item(0, RNG(0)).mel_FM
    data = Utterances(samples, MelSpec(), changes=SpeechAugment(**values))
    a, b, again = (data.item(0, RNG(seed)).mel_FM for seed in (1, 2, 1))
    fresh = Utterances(samples, MelSpec(), changes=SpeechAugment(**values)).item(0, RNG(1)).mel_FM
    assert a.shape != b.shape or not np.allclose(a, b)
    assert (a == again).all()
    assert (a == fresh).all()
    assert a.shape != plain.shape or not np.allclose(a, plain, atol=1e-2)
    assert np.isfinite(a).all()


def test_lengths_come_from_headers(folder: Path) -> None:
    data = Utterances([said(folder, name, "x") for name in ("short", "long", "fast", "broken")], MelSpec())
    assert data.lengths().tolist() == [20, 150, 100, 0]
    part = spoken(said(folder, "long", "x"))[0]
    assert duration_s(part.model_copy(update={"start": 0.5, "end": 1.0})) == pytest.approx(0.5)
    assert duration_s(part.model_copy(update={"end": 9.0})) == pytest.approx(1.5)


def test_crops_lie_within_and_wander(folder: Path) -> None:
    samples = [said(folder, "long", "one"), said(folder, "short", "two")]
    whole = Utterances(samples, MelSpec(), pad_s=0.0)
    crops = Crops(whole, 40)
    assert len(crops) == 2
    assert crops.name(1) == samples[1].id
    full = whole.item(0, RNG(0)).mel_FM
    starts = set()
    for seed in range(60):
        piece = crops.item(0, RNG(seed)).mel_FM
        assert piece.shape == (40, 128)
        starts.add(next(s for s in range(111) if (full[s : s + 40] == piece).all()))
    assert min(starts) < 15
    assert max(starts) > 95
    assert crops.item(1, RNG(0)).mel_FM.shape == (20, 128), "a short one is taken whole"
