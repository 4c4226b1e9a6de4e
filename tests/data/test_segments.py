"""Long transcripts are cut between words whose times are known, and left out, not counted as bad, where they
are not."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.data import readers, uses
from muomni.data.conversation import read_wave
from muomni.data.quarantine import Quarantine
from muomni.data.sample import Sample, parse
from muomni.data.segments import MARGIN_S, Segments, Word, cuts, words
from muomni.data.source import Source
from muomni.errors import DataError
from muomni.media import audio
from muomni.tokens.alphabet import Alphabet, min_frames

TIMED = [
    ["one", 0.1, 0.4],
    ["two,", 0.4, 0.8],
    ["three", 1.5, 1.9],
    ["four", 1.9, 2.3],
    ["five", 2.4, 2.8],
    ["six", 4.0, 4.3],
]
TEXT = "One two, three four five six"


def said(timed: Any = TIMED, text: str = TEXT, **window: float) -> Sample:
    sound = {"type": "audio", "path": "a.wav", **window}
    messages = [{"role": "user", "content": [sound]}, {"role": "assistant", "content": text}]
    return parse(
        {
            "id": "s",
            "group": "ann",
            "split": "train",
            "messages": messages,
            "extra": {} if timed is None else {"words": timed},
        }
    )


def pieces(sample: Sample, most: int) -> list[tuple[str, float | None, float | None]]:
    found = []
    for piece in Segments(most).of(sample):
        part, text = uses.spoken(piece)
        found.append((text, part.start, part.end))
    return found


def test_a_long_one_is_cut_in_its_pauses() -> None:
    assert pieces(said(), 15) == [
        ("One two,", None, 1.05),
        ("three four five", 1.25, 3.05),
        ("six", 3.75, None),
    ]
    assert pieces(said(), 20) == [("One two,", None, 1.05), ("three four five six", 1.25, None)]


def test_a_short_one_is_the_very_sample() -> None:
    sample, segments = said(), Segments(64)
    assert next(segments.of(sample)) is sample
    assert segments.describe() == ""


def test_pieces_keep_side_and_group_and_have_ids_of_their_own() -> None:
    found = list(Segments(15).of(said()))
    assert [piece.id for piece in found] == ["s#0", "s#1", "s#2"]
    assert {(piece.group, piece.split, piece.task) for piece in found} == {("ann", "train", "transcribe")}
    assert [piece.answer for piece in found] == ["One two,", "three four five", "six"]
    assert all("words" not in piece.extra for piece in found)


def test_a_voice_of_the_assistants_is_cut_too() -> None:
    messages = [
        {"role": "user", "content": TEXT},
        {"role": "assistant", "content": [{"type": "audio", "path": "a.wav"}]},
    ]
    sample = parse({"id": "s", "group": "g", "messages": messages, "words": TIMED})
    assert [text for text, _, _ in pieces(sample, 15)] == ["One two,", "three four five", "six"]


def test_dicts_with_times_are_read_too() -> None:
    timed = [{"word": word, "start": start, "end": end, "score": 0.9} for word, start, end in TIMED]
    assert pieces(said(timed), 15) == pieces(said(), 15)


@pytest.mark.parametrize(
    ("timed", "why"),
    [
        (None, "without word times"),
        ([], "without word times"),
        (TIMED[:-1], "whose timed words are not those of the transcript"),
        ([["won", 0.1, 0.4], *TIMED[1:]], "whose timed words are not those of the transcript"),
        ([["one", 0.1, 0.5], *TIMED[1:]], "whose word times overlap or lie outside of the sound"),
        ([["one", 0.3, 0.3], *TIMED[1:]], "whose word times overlap or lie outside of the sound"),
        ([["one", "0.1", 0.4], *TIMED[1:]], "whose word times can't be read"),
        ([["one", 0.1], *TIMED[1:]], "whose word times can't be read"),
        ([["one", float("nan"), 0.4], *TIMED[1:]], "whose word times can't be read"),
    ],
)
def test_times_that_cannot_be_trusted_cut_nothing(timed: Any, why: str) -> None:
    segments = Segments(15)
    assert list(segments.of(said(timed))) == []
    assert segments.left_out == {why: 1}
    assert (
        segments.describe()
        == f"1 transcripts of more than 15 characters: 1 left out (1 {why}); the longest has 28 (max_text_len)"
    )


def test_times_outside_of_the_window_cut_nothing() -> None:
    assert pieces(said(start=0.0, end=5.0), 15)[2] == ("six", 3.75, 5.0)
    assert pieces(said(start=1.0, end=5.0), 15) == []
    assert pieces(said(end=4.0), 15) == []


def test_a_word_that_is_too_long_alone() -> None:
    segments = Segments(4)
    assert list(segments.of(said())) == []
    assert segments.left_out == {"with a word that is longer": 1}


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.floats(0.05, 0.6), st.floats(0, 1.5)), min_size=1, max_size=30),
    st.integers(12, 60),
)
def test_cuts_hold_every_word_once_and_no_piece_is_too_long(
    shape: list[tuple[int, float, float]], most: int
) -> None:
    timed, now = [], 0.0
    for letters, length, pause in shape:
        timed.append(Word("x" * letters, now + pause, now + pause + length))
        now += pause + length
    bounds = cuts(timed, most)
    assert (bounds[0], bounds[-1]) == (0, len(timed))
    assert bounds == sorted(set(bounds))
    assert all(len(" ".join(word.text for word in timed[a:b])) <= most for a, b in pairwise(bounds))
    fewest, room = 1, -1  # greedily
    for word in timed:
        room += len(word.text) + 1
        if room > most:
            fewest, room = fewest + 1, len(word.text)
    assert fewest <= len(bounds) - 1 <= 3 * fewest


# --- in a corpus --------------------------------------------------------------------------------------------------------------------------


def corpus(folder: Path, rows: list[dict[str, Any]], **more: Any) -> readers.Corpus:
    for number in range(len(rows)):
        audio.write(
            folder / f"{number}.wav",
            np.random.default_rng(number).normal(0, 0.1, 16000 * 5).astype(np.float32),
            16000,
        )
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = {
        "id": "{id}",
        "group": "{id}",
        "messages": [{"user": [{"audio": "{audio}"}]}, {"assistant": "{text}"}],
    }
    source = Source.model_validate({"path": "m.jsonl", **template})
    return readers.load(
        [source], base=folder, val_split=0.3, seed=0, quarantine=Quarantine(limit=0.0), **more
    )


def test_rows_that_are_left_out_are_no_bad_rows(tmp_path: Path) -> None:
    rows = [
        {"id": f"s{n}", "audio": f"{n}.wav", "text": TEXT, **({"words": TIMED} if n % 2 else {})}
        for n in range(8)
    ]
    segments = Segments(15)
    found = corpus(tmp_path, rows, segments=segments)
    assert found.segments is segments
    assert (segments.long, segments.cut, segments.pieces, segments.left_out.total()) == (8, 4, 12, 4)
    ids = {sample.id for sample in (*found.train, *found.valid)}
    assert ids == {f"s{n}#{piece}" for n in (1, 3, 5, 7) for piece in range(3)}
    for side in (found.train, found.valid):
        assert len(side) % 3 == 0, "pieces stay on the side of what they were cut from"
    assert not found.leaks
    assert len(found.weights) == len(found.train)


def test_where_nothing_is_left_the_reason_is_told(tmp_path: Path) -> None:
    rows = [{"id": f"s{n}", "audio": f"{n}.wav", "text": TEXT} for n in range(3)]
    with pytest.raises(
        DataError, match=r"3 transcripts of more than 15 characters: 3 left out \(3 without word times\)"
    ):
        corpus(tmp_path, rows, segments=Segments(15))


# --- on real speech -----------------------------------------------------------------------------------------------------------------------

REAL = pytest.mark.skipif("MUOMNI_DATA" not in os.environ, reason="MUOMNI_DATA is not set")


def phrases() -> list[Sample]:
    source = {
        "path": "speech.jsonl",
        "id": "{id}",
        "group": "{id}",
        "where": {"set": "libri_phrases"},
        "messages": [{"user": [{"audio": "{path}"}]}, {"assistant": "{text}"}],
    }
    return list(
        readers.read(Source.model_validate(source), Path(os.environ["MUOMNI_DATA"]), Quarantine(limit=0.0))
    )


@REAL
def test_real_speech_is_cut_where_it_is_quiet() -> None:
    """Read speech with aligned words: all of it is used, each piece can be written by CTC, and cuts lie where
    the voice is weaker."""
    samples, segments = phrases(), Segments(30)
    quieter = count = 0
    for sample in samples[:80]:
        whole, text = uses.spoken(sample)
        made = list(segments.of(sample))
        assert " ".join(uses.spoken(piece)[1] for piece in made) == text
        wave = read_wave(whole, 16000)
        power = np.convolve(wave**2, np.ones(400) / 400, "same")
        for piece in made:
            part, words_of = uses.spoken(piece)
            assert len(words_of) <= 30
            length = (part.end if part.end is not None else len(wave) / 16000) - (part.start or 0.0)
            assert min_frames(Alphabet().encode(words_of)) <= uses.states(length + 0.2)
            if part.start is not None:
                quieter += power[int(part.start * 16000)] < np.median(power)
                count += 1
    assert segments.cut == segments.long > 60
    assert not segments.left_out
    assert count > 60
    assert quieter / count > 0.6  # 0.5 were the cuts anywhere


@REAL
def test_without_times_the_nearest_gap_to_a_pause_is_too_often_the_wrong_one() -> None:
    """Why no row is cut without times: pauses laid to the gap between words that stands nearest by the share
    of its letters."""
    right = pauses = 0
    for sample in phrases():
        part, text = uses.spoken(sample)
        timed = words(sample, part, text)
        gaps = [b.start - a.end for a, b in pairwise(timed)]
        long_gaps = [place for place, gap in enumerate(gaps) if gap >= 0.25]
        spoken_s = timed[-1].end - timed[0].start - sum(gaps[place] for place in long_gaps)
        letters = np.cumsum([len(word.text) + 1 for word in timed])
        guesses = letters / letters[-1] * spoken_s
        for place in long_gaps:
            at = timed[place].end - timed[0].start - sum(gaps[other] for other in long_gaps if other < place)
            right += int(np.argmin(np.abs(guesses[:-1] - at))) == place
            pauses += 1
    assert pauses > 30
    assert 0.4 < right / pauses < 0.9, "were it surer than that, pauses would be a basis"
    assert MARGIN_S > 0
