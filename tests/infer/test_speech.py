"""Speech out: lengths, seeds, empty texts, and pieces that make up the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from muomni.errors import DataError
from muomni.infer.sampling import SamplingConfig
from muomni.infer.speech import Voice
from muomni.media import griffin_lim, mel
from muomni.models.codec import Codec, CodecConfig
from muomni.models.talker import Talker, TalkerConfig


def voice(end_bias: float = 0.0) -> Voice:
    torch.manual_seed(0)
    codec = Codec(
        CodecConfig(width=16, latent_width=8, blocks=1, fine_width=8, fine_blocks=1, codebook_size=10)
    )
    codec.quantiser.codebooks_KND.normal_()
    codec.mel_mean.fill_(-2.0)
    talker = Talker(
        TalkerConfig(
            text_vocab=99, text_units="char", codebook_size=10, width=24, layers=1, heads=2, ffn_width=32
        )
    )
    talker.heads[0].bias.data[talker.config.end] = end_bias
    return Voice(talker, codec)


def test_a_wave_lasts_as_long_as_its_codes() -> None:
    for said in voice().speak(["it is red", "no"], max_frames=9):
        assert said.wave_S.dtype == np.float32
        assert len(said.wave_S) == said.codes_KF.shape[1] * 1280
        assert np.abs(said.wave_S).max() <= 1


def test_batches_do_not_change_what_is_said() -> None:
    texts = ["it is red", "no", "a big ring"]
    together, apart = voice().speak(texts), voice().speak(texts, batch=1)
    for one, other in zip(together, apart):
        assert torch.equal(one.codes_KF, other.codes_KF)
        np.testing.assert_allclose(one.wave_S, other.wave_S, atol=1e-3)


def test_equal_seeds_say_the_same_and_others_do_not() -> None:
    drawn = [
        voice().speak(["it is red"], sampling=SamplingConfig(temperature=1.0, seed=seed))[0].codes_KF
        for seed in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert drawn[0].shape != drawn[2].shape or not torch.equal(drawn[0], drawn[2])


def test_the_end_symbol_is_reported() -> None:
    assert voice(end_bias=1e4).speak(["no"])[0].is_ended
    assert not voice(end_bias=-1e4).speak(["no"])[0].is_ended


def test_nothing_to_say_is_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        voice().speak(["yes", "   "])


def test_a_repetition_penalty_ends_a_stutter() -> None:
    stuck = voice(end_bias=-1e4)
    stuck.talker.heads[0].bias.data[3] = 50.0
    plain = stuck.speak(["no it is"], max_frames=12)[0].codes_KF[0]
    aware = stuck.speak(["no it is"], max_frames=12, sampling=SamplingConfig(repetition_penalty=1e3))[
        0
    ].codes_KF[0]
    assert set(plain.tolist()) == {3}
    assert len(set(aware.tolist())) > 1


def test_hidden_states_are_asked_for() -> None:
    asked = []

    def think(ids_BT: torch.Tensor, keep_BT: torch.Tensor) -> torch.Tensor:
        asked.append(ids_BT.shape)
        return torch.ones(*ids_BT.shape, 6)

    listener = Talker(
        TalkerConfig(
            text_vocab=99,
            text_units="char",
            codebook_size=10,
            width=24,
            layers=1,
            heads=2,
            ffn_width=32,
            condition_width=6,
        )
    )
    Voice(listener, voice().codec, think=think).speak(["yes"], max_frames=3)
    assert asked == [(1, 3)]


def test_pieces_make_up_the_whole() -> None:
    speaker = voice(end_bias=-1e4)
    whole = speaker.speak(["a big ring"])[0]
    pieces = list(speaker.stream("a big ring"))
    assert len(pieces) >= 4
    assert len(pieces[0]) == 1280
    grown = [len(piece) for piece in pieces[1:-1]]
    assert grown == sorted(grown)
    joined = np.concatenate(pieces)
    assert abs(len(joined) - len(whole.wave_S)) <= 80
    # the same spectrum: what differs is less than what two other starting phases make of the same frames
    spec = mel.SPEECH
    frames = min(len(joined), len(whole.wave_S)) // 160
    target = speaker.codec.decode(whole.codes_KF[None])[0]
    other = griffin_lim.sound(target, spec, seed=1)

    def distance(first: np.ndarray, second: np.ndarray) -> float:
        one, two = (
            mel.log_mel(torch.from_numpy(wave[: frames * 160])[None], spec) for wave in (first, second)
        )
        return float((one - two).abs().mean())

    assert distance(joined, whole.wave_S) < 1.5 * distance(other, whole.wave_S) + 0.1


def test_seams_do_not_click() -> None:
    speaker = voice(end_bias=-1e4)
    pieces = list(speaker.stream("a big ring"))
    joined = np.concatenate(pieces)
    jumps = np.abs(np.diff(joined))
    seams = np.cumsum([len(piece) for piece in pieces])[:-1]
    assert max(jumps[seams - 1]) <= np.quantile(jumps, 0.999) + 1e-3


def test_sound_is_as_loud_as_its_frames() -> None:
    tone = 0.3 * torch.sin(2 * torch.pi * 440 * torch.arange(16_000) / 16_000)
    wave = griffin_lim.sound(mel.log_mel(tone[None], mel.SPEECH)[0], mel.SPEECH)
    assert float(np.sqrt((wave[2000:-2000] ** 2).mean())) == pytest.approx(0.3 / 2**0.5, rel=0.1)
    assert not griffin_lim.sound(torch.full((20, 80), mel.SPEECH.log_floor), mel.SPEECH).any()
