"""A transcript that grows chunk by chunk is the whole one, with the times of its words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from muomni.infer import transcribe
from muomni.infer.ctc import CharLM
from muomni.infer.engine import Engine
from muomni.infer.transcribe import Transcript
from muomni.tokens.alphabet import Alphabet


def noise(seconds: float) -> np.ndarray:
    rng = np.random.default_rng(3)
    wave = rng.normal(size=int(16_000 * seconds)).astype(np.float32) * 0.1
    return wave * (np.sin(np.arange(len(wave)) / 4000) > 0)


@pytest.mark.parametrize("seconds", [0.7, 50.0])
@pytest.mark.parametrize("has_lm", [False, True])
def test_its_pieces_join_to_the_text_of_transcribe(engine: Engine, seconds: float, has_lm: bool) -> None:
    encoder, wave = engine.parts.hearing, noise(seconds)
    lm = CharLM.train([Alphabet().encode("the red circle")], size=len(Alphabet())) if has_lm else None
    (expected,) = transcribe.transcribe(encoder, [wave], char_lm=lm)
    *pieces, whole = transcribe.growing(encoder, wave, char_lm=lm)
    assert isinstance(whole, Transcript)
    assert whole.text == expected
    assert "".join(str(each) for each in pieces) == expected
    assert len(pieces) == (2 if seconds < 20 else 4)
    assert " ".join(word.text for word in whole.words) == " ".join(expected.split())
    times = [time for word in whole.words for time in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert all(0 <= time <= seconds for time in times)
    assert all(word.log_prob <= 0 for word in whole.words)


def test_times_are_those_of_real_speech(engine: Engine, media: Path) -> None:
    *_, whole = transcribe.growing(engine.parts.hearing, noise(2.0))
    assert isinstance(whole, Transcript)
    assert whole.seconds == 2.0
    assert whole.frames == len(
        transcribe.log_probs(engine.parts.hearing, [np.zeros((220, 128), np.float32)])[0]
    )
